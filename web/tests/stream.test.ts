/** A stream that breaks comes back: each event once, whatever happens to the connection. */
import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { ApiError } from "../src/shared/api.ts";
import { readEvents } from "../src/shared/sse.ts";
import { answer, type Wait } from "../src/chat/stream.ts";

type Reply = { status?: number; headers?: Record<string, string>; text: string; breaks?: boolean } | "no connection";
interface Seen {
  method: string;
  url: string;
  headers: Record<string, string>;
}

/** Answers requests from a script, and notes them. */
function server(...replies: Reply[]): Seen[] {
  const seen: Seen[] = [];
  globalThis.fetch = async (url, options) => {
    seen.push({ method: options?.method ?? "GET", url: String(url), headers: Object.fromEntries(new Headers(options?.headers)) });
    const reply = replies.shift();
    if (!reply) throw new ApiError("an unexpected request", 500); // ends the stream
    if (reply === "no connection") throw new TypeError("failed to fetch");
    const bytes = new TextEncoder().encode(reply.text);
    let at = 0;
    const body = new ReadableStream({
      pull(controller) {
        if (at < bytes.length) controller.enqueue(bytes.slice(at, (at += 7)));
        else if (reply.breaks) controller.error(new TypeError("network error"));
        else controller.close();
      },
    });
    return new Response(body, { status: reply.status ?? 200, headers: reply.headers });
  };
  return seen;
}

const event = (id: number | undefined, value: unknown) => `${id === undefined ? "" : `id: ${id}\n`}data: ${JSON.stringify({ value })}\n\n`;
const END = `${event(undefined, "usage")}data: [DONE]\n\n`;

async function all(options: Partial<Parameters<typeof answer>[0]> = {}): Promise<unknown[]> {
  const found: unknown[] = [];
  const signal = new AbortController().signal;
  const onWait = (wait: Wait | undefined) => wait?.now(); // no test waits
  for await (const { chunk } of answer({ id: "r", body: {}, last: 0, signal, onWait, ...options })) found.push((chunk as { value: unknown }).value);
  return found;
}

test("a whole stream", async () => {
  const seen = server({ text: `: hello\n\n${event(undefined, "role")}${event(1, "a")}${event(2, "b")}${END}` });
  assert.deepEqual(await all(), ["role", "a", "b", "usage"]);
  assert.equal(seen[0]!.headers["x-request-id"], "r");
  assert.equal(seen[0]!.headers["accept"], "text/event-stream");
});

test("a break between events", async () => {
  const seen = server({ text: event(1, "a"), breaks: true }, { text: event(2, "b") + END });
  assert.deepEqual(await all(), ["a", "b", "usage"]);
  assert.deepEqual([seen[1]!.method, seen[1]!.url, seen[1]!.headers["last-event-id"]], ["GET", "requests/r", "1"]);
});

test("a break inside an event of several chunks: the chunks that came are dropped, for they come again", async () => {
  server({ text: event(1, "a") + event(undefined, "b1"), breaks: true }, { text: event(undefined, "b1") + event(2, "b2") + END });
  assert.deepEqual(await all(), ["a", "b1", "b2", "usage"]);
});

test("a break inside a line, an end without [DONE], and one behind the last event", async () => {
  server(
    { text: event(1, "a") + "id: 2\nda", breaks: true },
    { text: event(2, "b") },
    { text: event(undefined, "usage"), breaks: true },
    { text: END },
  );
  assert.deepEqual(await all(), ["a", "b", "usage"]);
});

test("a server that is away for a while", async () => {
  const seen = server("no connection", "no connection", { status: 404, text: "" }, { text: event(1, "a") + END });
  assert.deepEqual(await all(), ["a", "usage"]);
  assert.deepEqual(seen.map((one) => one.method), ["POST", "GET", "GET", "POST"]);
});

test("a full server is asked again when it says", async () => {
  const waits: Wait[] = [];
  const full: Reply = { status: 429, headers: { "Retry-After": "7" }, text: '{"error":{"message":"full","code":"overloaded"}}' };
  const seen = server(full, { text: event(1, "a") + END });
  const begin = Date.now();
  await all({ onWait: (wait) => wait && (waits.push(wait), wait.now()) });
  assert.equal(waits[0]!.reason, "busy");
  assert.equal(waits[0]!.message, "full");
  assert.ok(Math.abs(waits[0]!.until - begin - 7000) < 500);
  assert.deepEqual(seen.map((one) => one.method), ["POST", "POST"]);
});

test("a repair in the middle: the server is not available, then goes on", async () => {
  const seen = server({ text: event(1, "a"), breaks: true }, { status: 503, text: "" }, { text: event(2, "b") + END });
  assert.deepEqual(await all(), ["a", "b", "usage"]);
  assert.deepEqual(seen.map((one) => one.headers["last-event-id"]), [undefined, "1", "1"]);
});

test("errors end it: before the stream, in the stream, and an answer that is no longer there", async () => {
  const error = '{"error":{"message":"wrong","code":"invalid_request","param":"seed"}}';
  server({ status: 400, text: error });
  await assert.rejects(all(), (one) => one instanceof ApiError && one.status === 400 && one.param === "seed");
  server({ text: `${event(1, "a")}data: ${error}\n\n` });
  await assert.rejects(all(), (one) => one instanceof ApiError && one.message === "wrong");
  for (const data of ["{", "null", "1"]) {
    server({ text: `${event(1, "a")}data: ${data}\n\n` });
    await assert.rejects(all(), (one) => one instanceof ApiError && one.code === "unreadable");
  }
  server({ text: event(1, "a"), breaks: true }, { status: 404, text: error });
  await assert.rejects(all(), (one) => one instanceof ApiError && one.status === 404);
});

test("only the rest is fetched after a reload", async () => {
  const seen = server({ text: event(6, "f") + END });
  assert.deepEqual(await all({ body: undefined, last: 5 }), ["f", "usage"]);
  assert.deepEqual([seen[0]!.method, seen[0]!.headers["last-event-id"]], ["GET", "5"]);
  server({ status: 404, text: "" });
  await assert.rejects(all({ body: undefined, last: 0 }), ApiError);
});

test("a server that stays away is given up, and stopping ends the wait", async () => {
  mock.timers.enable({ apis: ["Date"] });
  server(...Array<Reply>(60).fill("no connection"));
  await assert.rejects(all({ onWait: (wait) => wait && (mock.timers.tick(3000), wait.now()) }), TypeError);
  mock.timers.reset();
  const controller = new AbortController();
  server("no connection");
  await assert.rejects(all({ signal: controller.signal, onWait: () => controller.abort() }), { name: "AbortError" });
});

test("events are read however the bytes are cut", async () => {
  const text = 'id: 1\r\ndata: {"a":"é"}\r\n\r\n: note\n\ndata:b\ndata: c\n\nid: x\ndata: d\n\nretry: 5\n\ndata: lost';
  const bytes = new TextEncoder().encode(text);
  for (let size = 1; size < 12; size++) {
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        for (let i = 0; i < bytes.length; i += size) controller.enqueue(bytes.slice(i, i + size));
        controller.close();
      },
    });
    const found = [];
    for await (const one of readEvents(body)) found.push([one.id, one.data]);
    assert.deepEqual(found, [[1, '{"a":"é"}'], [undefined, "b\nc"], [undefined, "d"]]);
  }
});
