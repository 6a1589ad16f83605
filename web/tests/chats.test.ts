/** Conversations as the page keeps them: what is shown and what is stored stay the same. */
import "fake-indexeddb/auto";
import "./dom.ts";
import assert from "node:assert/strict";
import { test } from "node:test";

Object.defineProperty(globalThis, "BroadcastChannel", { value: undefined }); // node's would keep the process
const chats = await import("../src/chat/chats.ts");
const { newMessage } = await import("../src/chat/model.ts");

const say = (text: string) => newMessage(chats.current.value.id, chats.current.value.leaf, "user", text);
const shown = () => chats.path.value.map((one) => one.text);

test("a chat may begin before the storage is open, and is not replaced by the one that was open last", async () => {
  sessionStorage.setItem("lightllm-mp.open", "another");
  const opening = chats.openStorage();
  await chats.append([say("early")]);
  await opening;
  assert.deepEqual(shown(), ["early"]);
  assert.deepEqual(chats.conversations.value.map((one) => one.title), ["early"]);
});

test("versions: the newest path below the one that is chosen", async () => {
  chats.startNew();
  assert.deepEqual(shown(), []);
  const first = say("question");
  await chats.append([first]);
  const one = newMessage(first.conversation, first.id, "assistant", "one");
  await chats.append([one]);
  await chats.append([say("more")]);
  await chats.append([{ ...newMessage(first.conversation, first.id, "assistant", "two"), created: Date.now() + 10 }]);
  assert.deepEqual(shown(), ["question", "two"]);
  assert.equal(chats.versions.value.get(first.id)!.length, 2);
  await chats.chooseVersion(one.id);
  assert.deepEqual(shown(), ["question", "one", "more"]);
  await chats.removeMessage(one.id);
  assert.deepEqual(shown(), ["question", "two"]);
  await chats.removeMessage(first.id);
  assert.deepEqual(shown(), []);
});

test("titles: the first words, unless the user gives one; a search finds both and what was said", async () => {
  chats.startNew();
  await chats.append([say("What is a Rainbow?\nTell me.")]);
  const { id } = chats.current.value;
  assert.equal(chats.current.value.title, "What is a Rainbow?");
  await chats.rename(id, " Weather ");
  await chats.append([say("Thanks")]);
  assert.equal(chats.conversations.value[0]!.title, "Weather");
  for (const words of ["weather", "RAINBOW", "thanks"]) assert.ok((await chats.search(words)).has(id), words);
  assert.equal((await chats.search("nowhere")).size, 0);
});

test("an export comes back as it was, beside the first", async () => {
  const { id } = chats.current.value;
  const before = shown();
  await chats.imported(JSON.stringify(await chats.exported(id)));
  assert.notEqual(chats.current.value.id, id);
  assert.deepEqual(shown(), before);
});

test("a conversation that is deleted is gone, and a new one is shown", async () => {
  const { id } = chats.current.value;
  await chats.removeConversation(id);
  assert.deepEqual(shown(), []);
  assert.ok(chats.conversations.value.every((one) => one.id !== id));
  assert.deepEqual(await chats.unfinished(), []);
});

test("only answers of a page before this one are unfinished", async () => {
  chats.startNew();
  const { id } = chats.current.value;
  const old = { ...newMessage(id, null, "assistant", "half"), created: performance.timeOrigin - 1000 };
  await chats.append([old]);
  await chats.append([newMessage(id, old.id, "assistant")]);
  assert.deepEqual((await chats.unfinished()).map((one) => one.text), ["half"]);
  assert.equal((await chats.stored(old.id))!.text, "half");
});
