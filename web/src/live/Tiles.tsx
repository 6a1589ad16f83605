import { digits, percent, whole } from "./format.ts";
import type { LiveModel } from "./model.ts";

/** The numbers that one looks for first. */
export function Tiles({ model }: { model: LiveModel }) {
  const snapshot = model.snapshot!;
  const { requests, kv } = snapshot;
  const point = model.history.at(-1);
  const total = Math.max(kv.total, 1);
  return (
    <dl class="live-tiles">
      <Tile name="Tokens a second" value={point ? digits(point.generated) : "–"} more={point?.prompt ? `${digits(point.prompt)} of prompts` : "produced"} />
      <Tile name="Step" value={point?.steps ? `${digits(point.step_ms)} ms` : "–"} more={point?.steps ? `${digits(point.rows)} sequences` : requests.running ? "is being computed" : "idle"} />
      <Tile name="Running" value={whole(requests.running)} more={`${whole(requests.waiting)} waiting`} />
      <Tile name="Live requests" value={whole(requests.live)} more={`of ${whole(requests.most_live)} at most`} />
      <Tile name="KV in use" value={percent(kv.used / total)} more={`${percent(kv.cached / total)} cached`} />
    </dl>
  );
}

function Tile({ name, value, more }: { name: string; value: string; more: string }) {
  return (
    <div class="live-tile">
      <dt>{name}</dt>
      <dd class="live-tile-value">{value}</dd>
      <dd class="live-tile-more">{more}</dd>
    </div>
  );
}
