import type { HistoryPoint } from "./types.ts";

/** Seconds that the plots show. */
export const SPAN = 300;

/** Both runs of points in order of time; points of one time are the same, and those older than SPAN go. */
export function mergeHistory(known: HistoryPoint[], fresh: HistoryPoint[]): HistoryPoint[] {
  const first = fresh[0];
  if (!first) return known;
  const end = fresh.at(-1)!.at;
  const kept = known.filter((point) => point.at < first.at && point.at > end - SPAN);
  // A server that was started again counts its own time: nothing of the old one lies behind.
  return [...kept, ...fresh.filter((point) => point.at > end - SPAN)];
}
