import assert from "node:assert/strict";
import { test } from "node:test";
import { bytes, percent, rate, seconds } from "../src/live/format.ts";
import { mergeHistory, SPAN } from "../src/live/history.ts";
import { cellAt, cellsOf, colourOf, gridOf } from "../src/live/kv.ts";
import { EMPTY, MOST_NOTES, withNote, withSnapshot } from "../src/live/model.ts";
import { linePath, nearest, ticksOf, xOf, yOf } from "../src/live/plot.ts";
import { timesOf } from "../src/live/Requests.tsx";
import type { ActorSnapshot, HistoryPoint, LiveSnapshot, SequenceSnapshot } from "../src/live/types.ts";

const point = (at: number, generated = at): HistoryPoint => ({
  at, generated, prompt: 0, steps: 1, step_ms: 1, rows: 1, prefill_tokens: 0, decode_tokens: 1, running: 1, waiting: 0, kv_used: 1, kv_cached: 0,
});
const actor = (name: string, more: Partial<ActorSnapshot> = {}): ActorSnapshot => ({
  name, state: "ready", pid: 10, age: 5, restarts: 0, died: "", doing: "", done: 0, total: 0, wait: 0, cpu_seconds: 1, memory: 1, shared: 1, ...more,
});
const snapshot = (at: number, more: Partial<LiveSnapshot> = {}): LiveSnapshot => ({
  number: at,
  at,
  engine: { state: "running", trouble: "", draining: false, epoch: 1, seconds: at, model_name: "m", viewers: 1 },
  actors: [actor("router"), actor("worker0")],
  lanes: [],
  kv: { total: 4, used: 1, cached: 1, tree_tokens: 1, tree_nodes: 1, states: 0, states_total: 0, windows: 0, windows_total: 0, cell_slots: 1, running: btoa("\x64\0\0\0"), kept: btoa("\0\x64\0\0"), owners: btoa("\x01\0\0\0") },
  requests: { live: 0, most_live: 9, retained: 0, running: 0, waiting: 0, rows: [], more: 0 },
  images: null,
  history: [],
  ...more,
});
const engine = (more: Partial<LiveSnapshot["engine"]>) => ({ ...snapshot(0).engine, ...more });

test("history: points come once, in order, and the old ones go", () => {
  const first = mergeHistory([], [1, 2, 3].map((at) => point(at)));
  const second = mergeHistory(first, [2, 3, 4].map((at) => point(at)));
  assert.deepEqual(second.map((one) => one.at), [1, 2, 3, 4]);
  assert.equal(mergeHistory(second, []), second);
  assert.deepEqual(mergeHistory(second, [point(SPAN + 3)]).map((one) => one.at), [4, SPAN + 3]);
});

test("history: events that were missed leave a gap and nothing twice", () => {
  let known: HistoryPoint[] = [];
  for (let at = 10; at < 100; at += 15) known = mergeHistory(known, Array.from({ length: 10 }, (_, i) => point(at - 9 + i)));
  const times = known.map((one) => one.at);
  assert.deepEqual(times, [...new Set(times)].sort((a, b) => a - b));
});

test("CPU is the share of a core between two events of the same process", () => {
  const first = withSnapshot(EMPTY, snapshot(10));
  assert.equal(first.cpu.size, 0);
  const second = withSnapshot(first, snapshot(12, { actors: [actor("router", { cpu_seconds: 2 }), actor("worker0", { pid: 11, cpu_seconds: 0.5 })] }));
  assert.deepEqual([...second.cpu], [["router", 0.5]]);
});

test("a lane's rate never falls below nothing", () => {
  const lane = { source: "a", target: "b", waiting: 0, capacity: 8, messages: 10, refusals: 0 };
  const first = withSnapshot(EMPTY, snapshot(1, { lanes: [lane] }));
  const second = withSnapshot(first, snapshot(3, { lanes: [{ ...lane, messages: 30 }] }));
  assert.equal(second.rates.get("a>b"), 10);
  assert.equal(withSnapshot(second, snapshot(4, { lanes: [lane] })).rates.get("a>b"), 0);
});

test("the death of a worker and its repair are told in words, the newest first", () => {
  let model = withSnapshot(EMPTY, snapshot(1));
  assert.deepEqual(model.notes, []);
  model = withSnapshot(model, snapshot(2, {
    engine: engine({ state: "repairing", epoch: 2, trouble: "worker0 was killed" }),
    actors: [actor("router", { state: "resetting" }), actor("worker0", { state: "starting", pid: 11, restarts: 1, died: "was killed by SIGKILL" })],
  }));
  assert.deepEqual(model.notes.map((note) => note.text), [
    "Epoch 2: the repair begins. Requests wait.",
    "worker0 starts again, pid 11.",
    "worker0 was killed by SIGKILL.",
  ]);
  model = withSnapshot(model, snapshot(5, {
    engine: engine({ epoch: 2, seconds: 3 }),
    actors: [actor("router"), actor("worker0", { pid: 11, restarts: 1, died: "was killed by SIGKILL", age: 2.9 })],
  }));
  assert.deepEqual(model.notes.slice(0, 2).map((note) => note.text), ["Epoch 2: serving again after 3.0 s.", "worker0 is ready, 2.9 s after its start."]);
});

test("a repair between two events is told, too", () => {
  const before = withSnapshot(EMPTY, snapshot(1));
  const after = withSnapshot(before, snapshot(2, {
    engine: engine({ epoch: 2, seconds: 0.4 }),
    actors: [actor("router"), actor("worker0", { pid: 11, restarts: 1, died: "exited with code 3" })],
  }));
  assert.deepEqual(after.notes.map((note) => note.kind), ["good", "good", "bad"]);
});

test("silence, pauses, absence and a drain are told once", () => {
  let model = withSnapshot(EMPTY, snapshot(1));
  for (let twice = 0; twice < 2; twice++)
    model = withSnapshot(model, snapshot(2, {
      engine: engine({ draining: true }),
      actors: [actor("router", { state: "silent" }), actor("worker0", { state: "pausing", pid: 0, wait: 4 }), actor("guide", { state: "away" })],
    }));
  assert.deepEqual(model.notes.map((note) => note.text), [
    "The server drains: it takes no new requests.",
    "worker0 is started again in 4.0 s.",
    "router does not answer.",
  ]);
});

test("notes are bounded", () => {
  let model = EMPTY;
  for (let at = 0; at < 3 * MOST_NOTES; at++) model = withNote(model, { at, kind: "plain", text: "x" });
  assert.equal(model.notes.length, MOST_NOTES);
  assert.equal(model.notes[0]!.at, 3 * MOST_NOTES - 1);
});

test("the last map stays while the router does not answer", () => {
  const first = withSnapshot(EMPTY, snapshot(1));
  assert.equal(first.stale, false);
  const silent = { ...snapshot(2).kv, cell_slots: 0, running: "", kept: "", owners: "" };
  const second = withSnapshot(first, snapshot(2, { kv: silent }));
  assert.equal(second.stale, true);
  assert.equal(second.kv, first.kv);
  assert.equal(withSnapshot(EMPTY, snapshot(1, { kv: silent })).stale, false);
});

test("the columns of the map", () => {
  const { running, kept, owners } = cellsOf(snapshot(1).kv);
  assert.deepEqual([[...running], [...kept], [...owners]], [[100, 0, 0, 0], [0, 100, 0, 0], [1, 0, 0, 0]]);
  assert.equal(cellsOf({ ...snapshot(1).kv, running: "" }).running.length, 0);
});

test("cells fill the width, and a point names its cell", () => {
  for (const width of [0, 5, 328, 900])
    for (const number of [0, 1, 100, 1563, 2048]) {
      const grid = gridOf(number, width, 230);
      if (!number || !width) assert.equal(grid.pitch, 0);
      else {
        assert.ok(grid.columns * grid.rows >= number);
        assert.ok(grid.columns === 1 || grid.columns * grid.pitch <= width);
        assert.equal(cellAt(grid, number, 1, 1), 0);
        const last = number - 1;
        assert.equal(cellAt(grid, number, (last % grid.columns) * grid.pitch + 1, Math.floor(last / grid.columns) * grid.pitch + 1), last);
        assert.equal(cellAt(grid, number, grid.columns * grid.pitch + 1, 1), undefined);
        assert.equal(cellAt(grid, number, 1, grid.rows * grid.pitch + 1), undefined);
      }
    }
});

test("a request keeps its colour; ids have more bits than a number", () => {
  assert.equal(colourOf("4611686018427387905"), colourOf("4611686018427387905"));
  assert.notEqual(colourOf("4611686018427387905"), colourOf("4611686018427387906"));
});

test("times in stages fill the bar", () => {
  const row = { age: 10, queued: 2, first: 5 } as SequenceSnapshot;
  assert.deepEqual(timesOf(row).map((part) => Math.round(part.share * 10)), [2, 3, 5]);
  assert.deepEqual(timesOf({ ...row, queued: null, first: null }).map((part) => part.share), [1, 0, 0]);
  assert.deepEqual(timesOf({ ...row, age: 0, first: null }).map((part) => part.share).reduce((sum, share) => sum + share), 1);
});

test("ticks are round and reach the greatest value", () => {
  for (const most of [0.004, 0.7, 1, 3, 17, 99, 100, 512, 5500, 123456]) {
    const ticks = ticksOf(most);
    assert.ok(ticks.at(-1)! >= most && ticks.at(-1)! <= most * 2.1, `${most}: ${ticks}`);
    assert.ok(ticks.length >= 3 && ticks.length <= 6);
  }
  for (const most of [0, NaN, -1]) assert.deepEqual(ticksOf(most), [0, 1]);
});

test("a line ends at the right edge, and is interrupted where seconds are missing", () => {
  const frame = { width: 400, height: 150, left: 40, bottom: 20, top: 10 };
  assert.equal(xOf(300, 300, 300, frame), 400);
  assert.equal(xOf(0, 300, 300, frame), 40);
  assert.equal(yOf(0, 10, frame), 130);
  assert.equal(yOf(10, 10, frame), 10);
  const path = linePath([0, 1, 2, 50, 51].map((at) => ({ at, value: 1 })), 51, 300, 10, frame);
  assert.equal(path.match(/M/g)!.length, 2);
  assert.equal(path.match(/L/g)!.length, 3);
  assert.equal(linePath([{ at: 1, value: NaN }], 51, 300, 10, frame), "");
  assert.equal(nearest([100, 200, 300], 399, 300, 300, frame), 2);
  assert.equal(nearest([], 10, 0, 300, frame), -1);
});

test("numbers for people", () => {
  assert.deepEqual([0, 0.0004, 0.008, 0.434, 1].map(percent), ["0 %", "< 0.1 %", "0.8 %", "43 %", "100 %"]);
  assert.deepEqual([0, 0.971, 12.3].map(rate), ["0", "1", "12"]);
  assert.deepEqual([0, 1023, 1536, 5 << 20].map(bytes), ["0 B", "1,023 B", "1.5 KiB", "5 MiB"]);
  assert.deepEqual([0.01, 3.21, 42, 245, 7800, 190000].map(seconds), ["10 ms", "3.2 s", "42 s", "4 min 5 s", "2 h 10 min", "2 d 4 h"]);
});
