import { connection, refusal } from "./feed.ts";
import { seconds } from "./format.ts";
import type { LiveModel } from "./model.ts";

const STATES = { starting: "Starting", running: "Running", repairing: "Repairing", stopping: "Stopping" };
const TONES = { starting: "warn", running: "good", repairing: "bad", stopping: "warn" };

/** Title, state of the engine, and the button that holds the view still. */
export function StatusLine({ model, paused, onPause }: { model: LiveModel; paused: boolean; onPause: () => void }) {
  const engine = model.snapshot?.engine;
  const refused = connection.value === "refused";
  const tone = engine ? (engine.draining ? "warn" : TONES[engine.state]) : "warn";
  const state = engine ? (engine.draining ? "Draining" : STATES[engine.state]) : refused ? "No access" : "Connecting";
  return (
    <div class="live-head">
      <h1 id="live-title">Engine</h1>
      <span class={`live-pill tone-${tone}`} id="live-state">{state}</span>
      <p class="live-status">{engine ? statusOf(engine) : refused ? "" : "Waiting for the first event."}</p>
      <button type="button" class="live-button" id="live-pause" aria-pressed={paused} onClick={onPause}>
        {paused ? "Go on" : "Pause"}
      </button>
      <Trouble />
    </div>
  );
}

function statusOf(engine: NonNullable<LiveModel["snapshot"]>["engine"]): string {
  if (engine.state === "repairing") return `${engine.trouble || "a process is being replaced"} · for ${seconds(engine.seconds)}`;
  if (engine.trouble && engine.trouble !== engine.state) return engine.trouble;
  if (engine.state === "starting") return `for ${seconds(engine.seconds)}`;
  const since = engine.epoch > 1 ? `last repair ${seconds(engine.seconds)} ago` : `for ${seconds(engine.seconds)}`;
  const viewers = engine.viewers > 1 ? ` · ${engine.viewers} viewers` : "";
  return `epoch ${engine.epoch} · ${since}${viewers}`;
}

/** What is wrong with the connection. */
function Trouble() {
  const state = connection.value;
  if (state === "refused") return <p class="live-trouble" role="alert">{refusal.value}</p>;
  if (state === "broken") return <p class="live-trouble" role="status">The connection broke: connecting again. What you see is old.</p>;
  return null;
}
