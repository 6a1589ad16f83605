import assert from "node:assert/strict";
import { test } from "node:test";

/** What the feed needs of a browser. */
const target = new EventTarget();
const document = Object.assign(target, { hidden: false });
Object.assign(globalThis, { document });

const { connection, follow, model, refusal } = await import("../src/live/feed.ts");
const { setKey } = await import("../src/shared/api.ts");

const event = (at: number, state = "running") => ({
  number: at,
  at,
  engine: { state, trouble: "", draining: false, epoch: 1, seconds: at, model_name: "m", viewers: 1 },
  actors: [],
  lanes: [],
  kv: { total: 4, used: 0, cached: 0, tree_tokens: 0, tree_nodes: 0, states: 0, states_total: 0, windows: 0, windows_total: 0, cell_slots: 0, running: "", kept: "", owners: "" },
  requests: { live: 0, most_live: 9, retained: 0, running: 0, waiting: 0, rows: [], more: 0 },
  images: null,
  history: [],
});

type Answer = (signal: AbortSignal) => Response;

/** Answers of the server, one a connection; the last stays. */
function serve(...answers: Answer[]): { asked: number; keys: (string | null)[] } {
  const seen = { asked: 0, keys: [] as (string | null)[] };
  globalThis.fetch = (async (_path: string, options: RequestInit) => {
    seen.keys.push((options.headers as Headers).get("Authorization"));
    const answer = answers[Math.min(seen.asked++, answers.length - 1)]!;
    return answer(options.signal!);
  }) as typeof fetch;
  return seen;
}

/** A stream of these events that ends, or stays open. */
const stream = (ends: boolean, ...events: object[]): Answer => (signal) =>
  new Response(
    new ReadableStream({
      start(controller) {
        for (const one of events) controller.enqueue(new TextEncoder().encode(`data:${JSON.stringify(one)}\n\n`));
        if (ends) controller.close();
        else signal.addEventListener("abort", () => controller.error(signal.reason));
      },
    }),
  );
const refuse = (status: number): Answer => () =>
  new Response(JSON.stringify({ error: { message: `no ${status}`, code: "x", param: null } }), { status });

async function until(what: () => boolean): Promise<void> {
  for (let tries = 0; !what(); tries++) {
    assert.ok(tries < 1000, "it does not happen");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

test("a stream that ends is taken up again, and both are noted", async () => {
  const seen = serve(stream(true, event(1), event(2)), stream(false, event(3)));
  const stop = follow();
  await until(() => model.value.snapshot?.number === 3);
  assert.equal(seen.asked, 2);
  assert.equal(connection.value, "open");
  assert.deepEqual(model.value.notes.map((note) => note.text), ["Connected again.", "The connection broke."]);
  stop();
});

test("a server that is away is asked again; one that refuses says why", async () => {
  const seen = serve(() => { throw new TypeError("no connection"); }, refuse(503), refuse(403));
  const stop = follow();
  await until(() => connection.value === "refused");
  assert.equal(seen.asked, 3);
  assert.equal(refusal.value, "no 403");
  stop();
});

test("without a key it waits for one", async () => {
  const seen = serve(refuse(401), stream(false, event(9)));
  const stop = follow();
  await until(() => refusal.value === "no 401");
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(seen.asked, 1);
  setKey("boss");
  await until(() => model.value.snapshot?.number === 9);
  assert.deepEqual(seen.keys, [null, "Bearer boss"]);
  assert.equal(refusal.value, "");
  stop();
});

test("a hidden tab watches nothing", async () => {
  const seen = serve(stream(false, event(11)));
  const stop = follow();
  await until(() => model.value.snapshot?.number === 11);
  document.hidden = true;
  document.dispatchEvent(new Event("visibilitychange"));
  await until(() => connection.value === "hidden");
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(seen.asked, 1);
  document.hidden = false;
  document.dispatchEvent(new Event("visibilitychange"));
  await until(() => seen.asked === 2 && connection.value === "open");
  stop();
});
