/** What the view shows, made of the events that have come. Pure functions: no clock, no connection, no document. */
import { mergeHistory } from "./history.ts";
import { notesOf, type Note } from "./notes.ts";
import type { HistoryPoint, ImagesSnapshot, KvSnapshot, LiveSnapshot } from "./types.ts";

export interface LiveModel {
  snapshot: LiveSnapshot | undefined;
  history: HistoryPoint[];
  /** Share of a core of each actor, between the last two events; without those that are new. */
  cpu: ReadonlyMap<string, number>;
  /** Messages a second of each lane, named `source>target`. */
  rates: ReadonlyMap<string, number>;
  /** The last map of KV memory; `stale`: the router has not sent one since. */
  kv: KvSnapshot | undefined;
  stale: boolean;
  /** The last that the visual actor has said. */
  images: ImagesSnapshot | null;
  /** What has happened, the newest first. */
  notes: Note[];
}

export const MOST_NOTES = 60;

export const EMPTY: LiveModel = {
  snapshot: undefined,
  history: [],
  cpu: new Map(),
  rates: new Map(),
  kv: undefined,
  stale: false,
  images: null,
  notes: [],
};

/** The model after one more event. */
export function withSnapshot(model: LiveModel, next: LiveSnapshot): LiveModel {
  const last = model.snapshot;
  const mapped = next.kv.cell_slots > 0;
  return {
    snapshot: next,
    history: mergeHistory(model.history, next.history),
    cpu: cpuShares(last, next),
    rates: laneRates(last, next),
    kv: mapped ? next.kv : model.kv,
    stale: !mapped && model.kv !== undefined,
    images: next.images ?? model.images,
    notes: withNotes(model.notes, notesOf(last, next)),
  };
}

/** The model after something that the server did not say. */
export function withNote(model: LiveModel, note: Note): LiveModel {
  return { ...model, notes: withNotes(model.notes, [note]) };
}

function withNotes(known: Note[], fresh: Note[]): Note[] {
  return fresh.length ? [...fresh.toReversed(), ...known].slice(0, MOST_NOTES) : known;
}

/** A process is the same one while its pid is. */
function cpuShares(last: LiveSnapshot | undefined, next: LiveSnapshot): Map<string, number> {
  const found = new Map<string, number>();
  const seconds = last ? next.at - last.at : 0;
  if (!last || seconds <= 0) return found;
  const before = new Map(last.actors.map((actor) => [actor.name, actor]));
  for (const actor of next.actors) {
    const old = before.get(actor.name);
    if (old && actor.pid && old.pid === actor.pid)
      found.set(actor.name, Math.max(0, actor.cpu_seconds - old.cpu_seconds) / seconds);
  }
  return found;
}

export const laneName = (lane: { source: string; target: string }): string => `${lane.source}>${lane.target}`;

function laneRates(last: LiveSnapshot | undefined, next: LiveSnapshot): Map<string, number> {
  const found = new Map<string, number>();
  const seconds = last ? next.at - last.at : 0;
  if (!last || seconds <= 0) return found;
  const before = new Map(last.lanes.map((lane) => [laneName(lane), lane.messages]));
  for (const lane of next.lanes) {
    const messages = before.get(laneName(lane));
    if (messages !== undefined) found.set(laneName(lane), Math.max(0, lane.messages - messages) / seconds);
  }
  return found;
}
