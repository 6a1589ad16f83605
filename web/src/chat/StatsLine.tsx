import type { Stats } from "./model.ts";

/** Speed and time to first token in a line; the stages of the answer unfold. */
export function StatsLine({ stats }: { stats: Stats | undefined }) {
  if (!stats) return null;
  const parts = [
    stats.tokensPerSecond !== undefined && `${number(stats.tokensPerSecond)} tokens/s`,
    stats.ttftMs !== undefined && `first token ${time(stats.ttftMs)}`,
    stats.tokens !== undefined && `${stats.tokens} ${stats.tokens === 1 ? "token" : "tokens"}`,
  ].filter(Boolean);
  if (!parts.length) return null;
  return (
    <details class="stats">
      <summary title="Stages of this answer">{parts.join(" · ")}</summary>
      <Stages stats={stats} />
    </details>
  );
}

interface Stage {
  name: string;
  ms: number;
  kind: string;
  more: string;
}

/** The stages whose times are known. Where the server says only the first token's, it is one stage. */
export function stagesOf(stats: Stats): Stage[] {
  const { queueMs, promptMs, ttftMs, predictedMs, promptTokens, cachedTokens, tokens } = stats;
  const cached = cachedTokens ? `, ${cachedTokens} of them cached` : "";
  const prompt = promptTokens === undefined ? "" : `${promptTokens} tokens${cached}`;
  const found: Stage[] = [];
  if (queueMs !== undefined) found.push({ name: "Waiting", ms: queueMs, kind: "queue", more: "" });
  if (promptMs !== undefined) found.push({ name: "Reading the prompt", ms: promptMs, kind: "prompt", more: prompt });
  else if (ttftMs !== undefined) found.push({ name: "To the first token", ms: ttftMs, kind: "prompt", more: prompt });
  if (predictedMs !== undefined)
    found.push({ name: "Answering", ms: predictedMs, kind: "answer", more: tokens === undefined ? "" : `${tokens} tokens` });
  return found;
}

function Stages({ stats }: { stats: Stats }) {
  const stages = stagesOf(stats);
  const total = stages.reduce((sum, one) => sum + one.ms, 0);
  let x = 0;
  return (
    <div class="stages">
      {total > 0 && (
        <svg class="stage-bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
          {stages.map(({ kind, ms }) => {
            const width = (ms / total) * 100;
            x += width;
            return <rect key={kind} class={`stage-${kind}`} x={x - width} y="0" width={width} height="6" />;
          })}
        </svg>
      )}
      <dl>
        {stages.map(({ name, ms, kind, more }) => (
          <div key={kind}>
            <dt>
              <span class={`stage-key stage-${kind}`} />
              {name}
            </dt>
            <dd>
              {time(ms)}
              {more && <span> ({more})</span>}
            </dd>
          </div>
        ))}
      </dl>
    </div>
  );
}

function number(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
}

export function time(ms: number): string {
  if (ms < 1000) return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  const seconds = ms / 1000;
  return seconds < 60 ? `${seconds.toFixed(seconds < 10 ? 2 : 1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}
