import "fake-indexeddb/auto";
import assert from "node:assert/strict";
import { test } from "node:test";
import { newConversation, newMessage } from "../src/chat/model.ts";
import { Storage } from "../src/chat/storage.ts";

async function kept(storage: Storage): Promise<void> {
  const one = { ...newConversation(""), id: "one" };
  const two = { ...newConversation(""), id: "two" };
  await storage.put("conversations", one, two);
  const first = newMessage("one", null, "user", "a");
  await storage.put("messages", first, newMessage("one", first.id, "assistant", "b"), newMessage("two", null, "user", "c"));
  await storage.put("pictures", { id: "p", conversation: "one", name: "", width: 1, height: 1, data: "" });
  await storage.put("messages", { ...first, text: "changed" });
  assert.equal((await storage.of("messages", "one")).length, 2);
  assert.ok((await storage.of("messages", "one")).some((message) => message.text === "changed"));
  assert.equal((await storage.get("messages", first.id))!.text, "changed");
  assert.equal(await storage.get("messages", "unknown"), undefined);
  await storage.removeConversation("one");
  assert.deepEqual((await storage.all("conversations")).map(({ id }) => id), ["two"]);
  assert.deepEqual((await storage.all("messages")).map(({ text }) => text), ["c"]);
  assert.deepEqual(await storage.all("pictures"), []);
}

test("records in the database", async () => {
  const storage = await Storage.open();
  assert.ok(storage.lasting);
  await kept(storage);
  assert.equal((await (await Storage.open()).all("messages")).length, 1); // after a reload
});

test("a browser without a database keeps them for the page", async () => {
  Object.defineProperty(globalThis, "indexedDB", { value: { open: () => { throw new DOMException("denied", "SecurityError"); } } });
  const storage = await Storage.open();
  assert.ok(!storage.lasting);
  await kept(storage);
});
