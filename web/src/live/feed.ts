/** The connection to GET /live/events: it comes back by itself, and rests while the tab is hidden. */
import { signal } from "@preact/signals";
import { announce } from "../shared/announcer.ts";
import { apiKey, ApiError, request } from "../shared/api.ts";
import { readEvents } from "../shared/sse.ts";
import { EMPTY, withNote, withSnapshot, type LiveModel } from "./model.ts";
import type { LiveSnapshot } from "./types.ts";

export type Connection = "connecting" | "open" | "broken" | "refused" | "hidden";

export const model = signal<LiveModel>(EMPTY);
export const connection = signal<Connection>("connecting");
/** Why the server refuses the stream. */
export const refusal = signal("");

/** Milliseconds without an event after which the connection counts as broken. */
const SILENCE = 6000;
const LONGEST_PAUSE = 5000;

/** Keep `model` up to date until the returned function is called. */
export function follow(): () => void {
  const over = new AbortController();
  void run(over.signal);
  return () => over.abort();
}

async function run(over: AbortSignal): Promise<void> {
  let pause = 250;
  while (!over.aborted) {
    if (document.hidden) {
      connection.value = "hidden";
      await visible(over);
      continue;
    }
    try {
      await read(over, () => (pause = 250));
      broke();
    } catch (error) {
      if (over.aborted) return;
      if (error instanceof ApiError && error.status !== 503) {
        refuse(error);
        if (error.status === 401) await newKey(over);
        else await sleep(Math.max(LONGEST_PAUSE, (error.retryAfter ?? 0) * 1000), over);
        continue;
      }
      broke();
    }
    await sleep(pause, over);
    pause = Math.min(LONGEST_PAUSE, pause * 2);
  }
}

/** One connection, until it ends or breaks, or the tab is hidden. */
async function read(over: AbortSignal, onEvent: () => void): Promise<void> {
  const stop = new AbortController();
  const end = () => stop.abort();
  const hide = () => document.hidden && end();
  let timer = setTimeout(end, SILENCE);
  over.addEventListener("abort", end);
  document.addEventListener("visibilitychange", hide);
  try {
    const response = await request("live/events", { signal: stop.signal });
    for await (const event of readEvents(response.body!)) {
      clearTimeout(timer);
      timer = setTimeout(end, SILENCE);
      onEvent();
      take(JSON.parse(event.data) as LiveSnapshot);
    }
  } finally {
    clearTimeout(timer);
    over.removeEventListener("abort", end);
    document.removeEventListener("visibilitychange", hide);
  }
}

function take(snapshot: LiveSnapshot): void {
  const before = model.value.snapshot?.engine.state;
  if (connection.value === "broken")
    model.value = withNote(model.value, { at: snapshot.at, kind: "good", text: "Connected again." });
  connection.value = "open";
  refusal.value = "";
  model.value = withSnapshot(model.value, snapshot);
  const { state, trouble } = snapshot.engine;
  if (before && state !== before) announce(state === "running" ? "The engine serves." : trouble || `The engine is ${state}.`);
}

function broke(): void {
  if (document.hidden || connection.value === "broken") return;
  if (connection.value === "open")
    model.value = withNote(model.value, { at: Date.now() / 1000, kind: "bad", text: "The connection broke." });
  connection.value = "broken";
}

function refuse(error: ApiError): void {
  connection.value = "refused";
  refusal.value = error.message;
}

const sleep = (milliseconds: number, over: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    over.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

const visible = (over: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const options = { once: true, signal: over };
    document.addEventListener("visibilitychange", () => resolve(), options);
    over.addEventListener("abort", () => resolve(), { once: true });
  });

/** A key other than the one that was refused. */
const newKey = (over: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const old = apiKey.peek();
    const stop = apiKey.subscribe((key) => {
      if (key !== old) setTimeout(() => (stop(), resolve()));
    });
    over.addEventListener("abort", () => (stop(), resolve()), { once: true });
  });
