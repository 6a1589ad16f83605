/** What has happened between two events, in words. */
import { seconds as inSeconds } from "./format.ts";
import type { ActorSnapshot, LiveSnapshot } from "./types.ts";

export interface Note {
  /** Seconds since 1970. */
  at: number;
  kind: "good" | "bad" | "plain";
  text: string;
}

export function notesOf(last: LiveSnapshot | undefined, next: LiveSnapshot): Note[] {
  const notes: Note[] = [];
  const add = (kind: Note["kind"], text: string) => notes.push({ at: next.at, kind, text });
  const engine = next.engine;
  if (!last) {
    if (engine.state === "repairing") add("bad", `A repair is under way: ${engine.trouble}.`);
    return notes;
  }
  const before = new Map(last.actors.map((actor) => [actor.name, actor]));
  for (const actor of next.actors) {
    const old = before.get(actor.name);
    if (old) noteActor(old, actor, add);
  }
  noteEngine(last, next, add);
  return notes;
}

type Add = (kind: Note["kind"], text: string) => void;

function noteActor(old: ActorSnapshot, now: ActorSnapshot, add: Add): void {
  const { name } = now;
  if (now.restarts > old.restarts) add("bad", `${name} ${now.died || "ended"}.`);
  if (now.pid && old.pid && now.pid !== old.pid && now.state !== "ready") add("plain", `${name} starts again, pid ${now.pid}.`);
  if (now.pid !== old.pid && now.state === "ready") add("good", `${name} is ready again, pid ${now.pid}.`);
  else if (old.state === "starting" && now.state === "ready") add("good", `${name} is ready, ${inSeconds(now.age)} after its start.`);
  if (now.state !== old.state) {
    if (now.state === "silent") add("bad", `${name} does not answer.`);
    if (now.state === "away") add("bad", `${name} fails again and again: what needs it is refused.`);
    if (now.state === "pausing") add("plain", `${name} is started again in ${inSeconds(now.wait)}.`);
  }
}

function noteEngine(last: LiveSnapshot, next: LiveSnapshot, add: Add): void {
  const { state, epoch, draining } = next.engine;
  const was = last.engine;
  if (draining && !was.draining) add("plain", "The server drains: it takes no new requests.");
  if (state === "repairing" && epoch !== was.epoch) add("bad", `Epoch ${epoch}: the repair begins. Requests wait.`);
  if (state === "running" && (was.state !== "running" || epoch !== was.epoch)) {
    const how = was.state === "starting" ? "serving" : "serving again";
    add("good", `Epoch ${epoch}: ${how} after ${inSeconds(next.engine.seconds)}.`);
  }
}
