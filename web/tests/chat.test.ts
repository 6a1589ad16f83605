/** Messages, bodies, settings, files: what the chat is made of. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { applyChunk, finishStats, progressOf, type Draft } from "../src/chat/chunks.ts";
import { curlOf, python, pythonOf } from "../src/chat/exports.ts";
import { readExport } from "../src/chat/imports.ts";
import {
  newConversation, newestLeaf, newMessage, openCalls, pathTo, subtree, titleOf, type Message, type Picture,
} from "../src/chat/model.ts";
import { chatBody, streamed } from "../src/chat/request_body.ts";
import { checked, DEFAULTS, NUMBERS, wrong, wrongJson, type Settings } from "../src/chat/settings.ts";

function tree(...rows: [id: string, parent: string | null, role: Message["role"]][]): Map<string, Message> {
  const made = rows.map(([id, parent, role], i) => ({ ...newMessage("c", parent, role, `text of ${id}`), id, created: i }));
  return new Map(made.map((one) => [one.id, one]));
}

const TREE = tree(["u", null, "user"], ["a1", "u", "assistant"], ["u2", "a1", "user"], ["a3", "u2", "assistant"], ["a2", "u", "assistant"]);

test("a path, the newest below a version, and what a deletion takes along", () => {
  assert.deepEqual(pathTo(TREE, "a3").map((one) => one.id), ["u", "a1", "u2", "a3"]);
  assert.deepEqual(pathTo(TREE, null), []);
  assert.deepEqual(pathTo(TREE, "unknown"), []);
  assert.equal(newestLeaf(TREE, "a1"), "a3");
  assert.equal(newestLeaf(TREE, "a2"), "a2");
  assert.deepEqual(subtree(TREE, "a1"), ["a1", "u2", "a3"]);
  const circle = tree(["x", "y", "user"], ["y", "x", "user"]);
  assert.ok(pathTo(circle, "x").length <= 3);
});

test("titles are short", () => {
  assert.equal(titleOf("  Hello\nthere "), "Hello");
  assert.equal(titleOf(""), "New chat");
  assert.ok(titleOf("word ".repeat(40)).length <= 49);
  assert.ok(titleOf("x".repeat(200)).endsWith("…"));
});

function draft(): Draft {
  return { message: newMessage("c", null, "assistant"), sent: 0, events: 0 };
}

const delta = (value: object, more: object = {}) => ({ choices: [{ delta: value, ...more }] });

test("chunks become text, reasoning, calls, probabilities and numbers", () => {
  const one = draft();
  const token = { token: "A", logprob: -0.5, top_logprobs: [{ token: "A", logprob: -0.5 }, { token: "B", logprob: -1 }] };
  applyChunk(one, delta({ role: "assistant", content: "" }), 5);
  assert.equal(one.first, undefined);
  applyChunk(one, delta({ reasoning_content: "Let me " }), 10);
  applyChunk(one, delta({ reasoning_content: "think" }), 40);
  applyChunk(one, delta({ content: "A" }, { logprobs: { content: [token] } }), 50);
  applyChunk(one, delta({ tool_calls: [{ index: 0, id: "i", function: { name: "f", arguments: "" } }] }), 60);
  applyChunk(one, delta({ tool_calls: [{ index: 0, function: { arguments: '{"a":' } }] }), 61);
  applyChunk(one, delta({ tool_calls: [{ index: 0, function: { arguments: "1}" } }] }, { finish_reason: "tool_calls" }), 62);
  applyChunk(one, { choices: [], usage: { prompt_tokens: 9, completion_tokens: 4, prompt_tokens_details: { cached_tokens: 3 } } }, 70);
  const { message } = one;
  assert.deepEqual([message.text, message.reasoning, message.reasoningMs, message.finish], ["A", "Let me think", 30, "tool_calls"]);
  assert.deepEqual(message.calls, [{ id: "i", name: "f", arguments: '{"a":1}' }]);
  assert.deepEqual(message.tokens![0]!.top[1], { text: "B", logprob: -1 });
  finishStats(one, 110, false);
  assert.deepEqual(message.stats, { promptTokens: 9, cachedTokens: 3, tokens: 4, ttftMs: 10, predictedMs: 100, tokensPerSecond: 30 });
});

test("speed while an answer grows", () => {
  const one = draft();
  assert.deepEqual(progressOf(one, 5), {});
  applyChunk(one, delta({ content: "a" }), 10);
  one.events = 1;
  assert.deepEqual(progressOf(one, 10), { ttftMs: 10, tokens: 1 });
  one.events = 21;
  assert.deepEqual(progressOf(one, 510), { ttftMs: 10, tokens: 21, tokensPerSecond: 40 });
});

test("the server's own times are taken; after a reload nothing is made up", () => {
  const one = draft();
  applyChunk(one, delta({ content: "a" }), 10);
  const timings = { queue_ms: 1, prompt_ms: 2, ttft_ms: 3, predicted_ms: 4, predicted_per_second: 250, unknown: 1 };
  applyChunk(one, { choices: [], usage: {}, timings }, 20);
  finishStats(one, 1000, false);
  assert.deepEqual(one.message.stats, { queueMs: 1, promptMs: 2, ttftMs: 3, predictedMs: 4, tokensPerSecond: 250, tokens: 0 });
  const resumed = draft();
  applyChunk(resumed, delta({ content: "a" }), 10);
  finishStats(resumed, 1000, true);
  assert.deepEqual(resumed.message.stats, {});
});

test("chunks of another form harm nothing", () => {
  const one = draft();
  for (const chunk of [{}, { choices: [] }, { choices: [{}] }, { choices: [{ delta: {} }], usage: null, timings: null }]) applyChunk(one, chunk, 1);
  assert.equal(one.message.text, "");
});

const PICTURE: Picture = { id: "p", conversation: "c", name: "cat", width: 1, height: 1, data: "data:image/png;base64,AA==" };
const parts = (path: Message[], settings: Partial<Settings> = {}) => ({
  model: "m", system: "", path, pictures: new Map([["p", PICTURE]]), settings: { ...DEFAULTS, ...settings },
});

test("a body says what is set and nothing else", () => {
  const path = pathTo(TREE, "u");
  assert.deepEqual(chatBody(parts(path)), { model: "m", messages: [{ role: "user", content: "text of u" }] });
  const set = { temperature: "0", top_k: "40", max_tokens: "12.5", seed: " 7 ", stop: "a\n\nb", format: "json_object" as const };
  assert.deepEqual(chatBody({ ...parts(path, set), system: "Be brief." }), {
    model: "m",
    messages: [{ role: "system", content: "Be brief." }, { role: "user", content: "text of u" }],
    temperature: 0, top_k: 40, seed: 7, stop: ["a", "b"],
    response_format: { type: "json_object" },
  });
  const schema = chatBody(parts(path, { format: "json_schema", schema: '{"type":"object"}', tools: '[{"type":"function"}]' }));
  assert.deepEqual(schema["response_format"], { type: "json_schema", json_schema: { name: "answer", schema: { type: "object" } } });
  assert.deepEqual(schema["tools"], [{ type: "function" }]);
  const wrongOnes = chatBody(parts(path, { format: "json_schema", schema: "{", tools: "{}" }));
  assert.deepEqual(Object.keys(wrongOnes), ["model", "messages"]);
  const sent = streamed(chatBody(parts(path)), { ...DEFAULTS, logprobs: true }, true);
  assert.deepEqual([sent["stream"], sent["logprobs"], sent["top_logprobs"], sent["return_timings"]], [true, true, 5, true]);
  assert.ok(!("return_timings" in streamed(chatBody(parts(path)), DEFAULTS, false)));
});

test("pictures, reasoning, calls and results go back as the API wants them", () => {
  const user: Message = { ...newMessage("c", null, "user", "what?"), pictures: ["p", "gone"] };
  const called: Message = { ...newMessage("c", user.id, "assistant"), reasoning: "hm", calls: [{ id: "i", name: "f", arguments: "{}" }] };
  const result: Message = { ...newMessage("c", called.id, "tool", "42"), callId: "i" };
  const { messages } = chatBody({ ...parts([user, called, result]), resumeLast: true });
  assert.deepEqual(messages, [
    { role: "user", content: [{ type: "image_url", image_url: { url: PICTURE.data } }, { type: "text", text: "what?" }] },
    { role: "assistant", content: "", reasoning_content: "hm", tool_calls: [{ id: "i", type: "function", function: { name: "f", arguments: "{}" } }] },
    { role: "tool", tool_call_id: "i", content: "42" },
  ]);
  assert.deepEqual(openCalls([user, called]).map((one) => one.id), ["i"]);
  assert.deepEqual(openCalls([user, called, result]), []);
  assert.equal(chatBody({ ...parts([user]), resumeLast: true })["continue_final_message"], true);
});

test("settings: wrong values are told, and what is stored is checked", () => {
  const [temperature, , topK] = NUMBERS;
  assert.deepEqual(["", " ", "0", "2", "1e0"].map((value) => wrong(temperature!, value)), Array(5).fill(undefined));
  for (const value of ["x", "-1", "3", "NaN"]) assert.ok(wrong(temperature!, value), value);
  assert.ok(wrong(topK!, "1.5"));
  assert.deepEqual(checked({ temperature: 1, seed: "5", logprobs: "yes", more: 1 }), { ...DEFAULTS, seed: "5" });
  assert.equal(wrongJson("", "list"), undefined);
  assert.equal(wrongJson("[]", "list"), undefined);
  for (const text of ["{}", "[", "null"]) assert.ok(wrongJson(text, "list"), text);
});

const HARD = "it's \"x\" \\ $HOME `id` ${y}\n\té😀\u2028\u007f";

test("curl: the shell gives back what was written, and runs nothing of it", () => {
  const body = chatBody(parts([newMessage("c", null, "user", HARD)]));
  const command = curlOf(body, "http://127.0.0.1:8000", true).replace(/^curl/, "printf '%s\\0'");
  const words = execFileSync("sh", ["-c", command], { env: { API_KEY: "secret", PATH: process.env["PATH"] } }).toString().split("\0");
  assert.deepEqual(JSON.parse(words.at(-2)!), body);
  assert.ok(words.includes("Authorization: Bearer secret"));
  assert.ok(!curlOf(body, "http://x", false).includes("Authorization"));
});

test("Python: literals mean what they meant", (context) => {
  const value = { a: [true, false, null, 1.5, "", HARD], "k'\"": {}, l: [], deep: { list: [{ text: "x".repeat(90) }] } };
  const program = `import json\nprint(json.dumps(${python(value)}))`;
  let out: string;
  try {
    out = execFileSync("python3", ["-c", program]).toString();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return context.skip("no python3");
    throw error;
  }
  assert.deepEqual(JSON.parse(out), value);
  const text = pythonOf({ model: "m", messages: [], temperature: 0, top_k: 4 }, "http://h", false);
  assert.match(text, /temperature=0,\n {4}extra_body=\{"top_k": 4\},\n\)/);
});

test("an exported conversation comes in again under new ids", () => {
  const conversation = { ...newConversation("sys"), id: "c", title: "T", leaf: "a3" };
  const user = { ...TREE.get("u")!, pictures: ["p"] };
  const messages = [user, ...[...TREE.values()].slice(1)];
  const file = JSON.stringify({ format: "lightllm-mp conversation", version: 1, conversation, messages, pictures: [PICTURE] });
  const found = readExport(file);
  assert.notEqual(found.conversation.id, "c");
  assert.equal(found.conversation.system, "sys");
  const path = pathTo(new Map(found.messages.map((one) => [one.id, one])), found.conversation.leaf);
  assert.deepEqual(path.map((one) => one.text), ["text of u", "text of a1", "text of u2", "text of a3"]);
  assert.ok(path.every((one) => one.conversation === found.conversation.id && one.state !== "streaming"));
  assert.deepEqual(path[0]!.pictures, [found.pictures[0]!.id]);
});

test("files that are no conversations are refused, and their pictures hold pictures only", () => {
  for (const text of ["", "[]", "null", "{}", '{"format":"lightllm-mp conversation"}']) assert.throws(() => readExport(text), /file/);
  const hostile = { ...PICTURE, data: "https://evil.example/a.png" };
  const svg = { ...PICTURE, data: "data:text/html;base64,AA==" };
  const file = { format: "lightllm-mp conversation", conversation: newConversation(""), messages: [], pictures: [hostile, svg, PICTURE] };
  assert.equal(readExport(JSON.stringify(file)).pictures.length, 1);
});

test("what is of another type in a file is left out", () => {
  const odd = { id: 1, parent: {}, role: "system", text: null, state: "streaming", calls: "x", tokens: [1, { text: 5, top: "y" }], stats: { tokens: "9", ttftMs: 3 }, error: "e", pictures: "p", json: "yes", onclick: "x" };
  const file = { format: "lightllm-mp conversation", conversation: { id: "c", title: {}, leaf: 5 }, messages: [odd, null, 7], pictures: {} };
  const { conversation, messages } = readExport(JSON.stringify(file));
  assert.deepEqual([conversation.title, conversation.leaf, messages.length], ["Imported chat", null, 1]);
  const { id: _, conversation: __, ...rest } = messages[0]!;
  assert.deepEqual(rest, {
    parent: null, created: 0, role: "user", text: "", state: "stopped", tokens: [{ text: "", logprob: 0, top: [] }], stats: { ttftMs: 3 },
  });
});
