import { Bar } from "./Bar.tsx";
import { seconds, whole } from "./format.ts";
import { colourOf } from "./kv.ts";
import type { LiveModel } from "./model.ts";
import { Section, TableBox } from "./Section.tsx";
import type { SequenceSnapshot, SequenceStage } from "./types.ts";

const STAGES: Record<SequenceStage, string> = {
  repair: "waits for the repair",
  quarantine: "waits its turn",
  tokenizing: "tokenized",
  images: "waits for images",
  constraint: "constraint compiled",
  queued: "queued",
  prefill: "prefill",
  decode: "decode",
  delivering: "delivered",
};
const TONES: Partial<Record<SequenceStage, string>> = { repair: "bad", quarantine: "warn", queued: "warn", decode: "good" };

/** Running and waiting requests with their stages. */
export function Requests({ model }: { model: LiveModel }) {
  const { rows, more, running, waiting } = model.snapshot!.requests;
  return (
    <Section id="live-requests" title="Requests" aside={`${whole(running)} running, ${whole(waiting)} waiting`}>
      {rows.length === 0 ? (
        <p class="live-empty">No request is live.</p>
      ) : (
        <>
          <p class="live-legend">
            <Key kind="3" text="until its prefill" />
            <Key kind="2" text="until its first token" />
            <Key kind="1" text="since then" />
          </p>
          <TableBox label="Live requests">
            <table class="live-table">
              <thead>
                <tr>
                  <th scope="col">Request</th>
                  <th scope="col">Stage</th>
                  <th scope="col">Time in stages</th>
                  <th scope="col" class="number">Prompt</th>
                  <th scope="col" class="number">Cached</th>
                  <th scope="col" class="number">Produced</th>
                  <th scope="col" class="number">Age</th>
                </tr>
              </thead>
              <tbody>{rows.map((row) => <Row key={row.rid} row={row} />)}</tbody>
            </table>
          </TableBox>
          {more > 0 && <p class="live-empty">{whole(more)} more are not shown.</p>}
        </>
      )}
    </Section>
  );
}

function Row({ row }: { row: SequenceSnapshot }) {
  return (
    <tr data-stage={row.stage}>
      <th scope="row">
        <svg class="live-swatch" viewBox="0 0 10 10" aria-hidden="true">
          <rect class={`fill-${colourOf(row.rid) + 1}`} width="10" height="10" rx="2" />
        </svg>
        <code>{row.label || row.rid}</code>
        {row.index > 0 && ` · answer ${row.index + 1}`}
        {row.client && ` · ${row.client}`}
        {row.images > 0 && ` · ${row.images} ${row.images > 1 ? "images" : "image"}`}
        {row.constrained && " · constrained"}
      </th>
      <td>
        <span class={`live-pill tone-${TONES[row.stage] ?? "plain"}`}>{STAGES[row.stage]}</span>
        {row.stage === "prefill" && row.prompt > 0 && <span class="live-soft"> {whole(row.computed)} of {whole(row.prompt + row.produced)}</span>}
      </td>
      <td class="live-bar-cell">
        <Bar parts={timesOf(row)} />
        <span>{row.first === null ? "no token yet" : `first after ${seconds(row.first)}`}</span>
      </td>
      <td class="number">{row.prompt ? whole(row.prompt) : "–"}</td>
      <td class="number">{row.cached ? whole(row.cached) : "–"}</td>
      <td class="number">{whole(row.produced)} of {whole(row.most)}</td>
      <td class="number">{seconds(row.age)}</td>
    </tr>
  );
}

/** How its age divides into waiting, prefill and decode. */
export function timesOf(row: SequenceSnapshot): { share: number; kind: string }[] {
  const age = Math.max(row.age, 0.001);
  const queued = Math.min(row.queued ?? age, age);
  const first = Math.max(queued, Math.min(row.first ?? age, age));
  return [
    { share: queued / age, kind: "3" },
    { share: (first - queued) / age, kind: "2" },
    { share: (age - first) / age, kind: "1" },
  ];
}

export function Key({ kind, text }: { kind: string; text: string }) {
  return (
    <span class="live-key">
      <svg class="live-swatch" viewBox="0 0 10 10" aria-hidden="true">
        <rect class={`fill-${kind}`} width="10" height="10" rx="2" />
      </svg>
      {text}
    </span>
  );
}
