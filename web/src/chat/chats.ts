/** The conversations of this browser: which there are, which one is shown, and its messages. All changes of them are here. */
import { batch, computed, signal } from "@preact/signals";
import {
  newConversation,
  newestLeaf,
  pathTo,
  subtree,
  titleOf,
  versionsOf,
  type Conversation,
  type Message,
  type Messages,
  type Picture,
} from "./model.ts";
import { FORMAT, readExport } from "./imports.ts";
import { settings } from "./settings.ts";
import { Storage } from "./storage.ts";

const OPEN = "lightllm-mp.open";

let opening: Promise<Storage> | undefined;
const storage = (): Promise<Storage> => (opening ??= Storage.open());
/** False: the browser has no room, or no database, so a reload would lose something. */
export const lasting = signal(true);
/** The newest first. */
export const conversations = signal<readonly Conversation[]>([]);
/** The one that is shown. One without messages is kept nowhere until its first message is sent. */
export const current = signal<Conversation>(newConversation(settings.value.system));
/** Of the conversation that is shown. */
export const messages = signal<Messages>(new Map());
export const pictures = signal<ReadonlyMap<string, Picture>>(new Map());
/** Messages from the first one to the leaf that is chosen. */
export const path = computed(() => pathTo(messages.value, current.value.leaf));
export const versions = computed(() => versionsOf(messages.value));

/** Tells the other tabs of this browser which conversation has changed. */
const channel = typeof BroadcastChannel === "undefined" ? undefined : new BroadcastChannel("lightllm-mp");

/** Reads what there is. The conversation that was open last is shown, unless the user has begun another meanwhile. */
export async function openStorage(): Promise<void> {
  lasting.value = (await storage()).lasting;
  await refresh();
  const { value: begun } = current;
  if (messages.value.size && !conversations.value.some((one) => one.id === begun.id)) conversations.value = [begun, ...conversations.value];
  const id = sessionStorageGet();
  if (!messages.value.size && conversations.value.some((one) => one.id === id)) await show(id);
  channel?.addEventListener("message", (event: MessageEvent<string>) => void changedElsewhere(event.data));
}

async function changedElsewhere(id: string): Promise<void> {
  await refresh();
  if (id === current.value.id && messages.value.size) await show(id);
}

/** A browser that cannot keep something does not end a chat. */
async function kept(write: (to: Storage) => Promise<void>[]): Promise<void> {
  await Promise.all(write(await storage())).catch(() => (lasting.value = false));
}

async function refresh(): Promise<void> {
  conversations.value = (await (await storage()).all("conversations")).sort((a, b) => b.updated - a.updated);
}

/** Messages of all conversations whose answer was not complete when a page was left. */
export async function unfinished(): Promise<Message[]> {
  const all = await (await storage()).all("messages");
  return all.filter((one) => one.state === "streaming" && one.created < performance.timeOrigin);
}

export async function stored(id: string): Promise<Message | undefined> {
  return (await storage()).get("messages", id);
}

export async function show(id: string): Promise<void> {
  const found = conversations.value.find((one) => one.id === id);
  if (!found) return;
  const from = await storage();
  const [list, images] = await Promise.all([from.of("messages", id), from.of("pictures", id)]);
  batch(() => {
    current.value = found;
    messages.value = new Map(list.map((one) => [one.id, one]));
    pictures.value = new Map(images.map((one) => [one.id, one]));
  });
  sessionStorageSet(id);
}

export function startNew(): void {
  batch(() => {
    current.value = newConversation(settings.value.system);
    messages.value = new Map();
    pictures.value = new Map();
  });
  sessionStorageSet("");
}

/** Puts messages into the conversation that is shown, the last of them as its leaf. */
export async function append(added: readonly Message[], images: readonly Picture[] = []): Promise<void> {
  const last = added.at(-1)!;
  batch(() => {
    messages.value = new Map([...messages.value, ...added.map((one) => [one.id, one] as const)]);
    if (images.length) pictures.value = new Map([...pictures.value, ...images.map((one) => [one.id, one] as const)]);
    const { named, title } = current.value;
    const first = path.value[0] ?? added[0]!;
    const begun = named || title !== "New chat" ? title : titleOf(first.text || (images.length ? "Picture" : ""));
    current.value = { ...current.value, leaf: last.id, updated: Date.now(), title: begun };
  });
  await kept((to) => [to.put("messages", ...added), to.put("pictures", ...images)]);
  await saveConversation(current.value);
  sessionStorageSet(current.value.id);
}

async function saveConversation(changed: Conversation): Promise<void> {
  const others = conversations.value.filter((one) => one.id !== changed.id);
  conversations.value = [changed, ...others].sort((a, b) => b.updated - a.updated);
  await kept((to) => [to.put("conversations", changed)]);
  channel?.postMessage(changed.id);
}

/** Replaces a message, shown or not. */
export async function saveMessage(message: Message): Promise<void> {
  if (message.conversation === current.value.id && messages.value.has(message.id))
    messages.value = new Map(messages.value).set(message.id, message);
  await kept((to) => [to.put("messages", message)]);
  if (message.state !== "streaming") channel?.postMessage(message.conversation);
}

/** Writes a message that still grows; what is shown of it comes from elsewhere. */
export function keepDraft(message: Message): Promise<void> {
  return kept((to) => [to.put("messages", message)]);
}

export async function rename(id: string, title: string): Promise<void> {
  await edit(id, { title: title.trim() || "New chat", named: true });
}

export async function changeSystem(system: string): Promise<void> {
  if (conversations.value.some((one) => one.id === current.value.id)) await edit(current.value.id, { system });
  else current.value = { ...current.value, system };
}

async function edit(id: string, changed: Partial<Conversation>): Promise<void> {
  const found = conversations.value.find((one) => one.id === id);
  if (!found) return;
  const next = { ...found, ...changed };
  if (current.value.id === id) current.value = { ...current.value, ...changed };
  await saveConversation(next);
}

/** Shows another version of a message, with what came after it last. */
export async function chooseVersion(id: string): Promise<void> {
  await edit(current.value.id, { leaf: newestLeaf(messages.value, id) });
}

/** Removes a message with all that came after it, in this version. */
export async function removeMessage(id: string): Promise<void> {
  const gone = new Set(subtree(messages.value, id));
  const parent = messages.value.get(id)?.parent ?? null;
  const left = new Map([...messages.value].filter(([one]) => !gone.has(one)));
  const sibling = [...left.values()].filter((one) => one.parent === parent).at(-1);
  const leaf = sibling ? newestLeaf(left, sibling.id) : parent;
  batch(() => {
    messages.value = left;
    current.value = { ...current.value, leaf };
  });
  await kept((to) => [to.remove("messages", ...gone)]);
  await edit(current.value.id, { leaf });
}

export async function removeConversation(id: string): Promise<void> {
  await kept((to) => [to.removeConversation(id)]); // it is gone when it is seen to be gone
  conversations.value = conversations.value.filter((one) => one.id !== id);
  if (current.value.id === id) startNew();
  channel?.postMessage(id);
}

/** Ids of conversations with `words` in their title or a message, whatever the case. */
export async function search(words: string): Promise<Set<string>> {
  const wanted = words.trim().toLowerCase();
  const found = new Set(conversations.value.filter((one) => one.title.toLowerCase().includes(wanted)).map((one) => one.id));
  for (const one of await (await storage()).all("messages")) if (one.text.toLowerCase().includes(wanted)) found.add(one.conversation);
  return found;
}

/** Everything of a conversation, for a file. */
export async function exported(id: string): Promise<object> {
  const conversation = conversations.value.find((one) => one.id === id);
  const from = await storage();
  const [list, images] = await Promise.all([from.of("messages", id), from.of("pictures", id)]);
  return { format: FORMAT, version: 1, conversation, messages: list, pictures: images };
}

/** Takes such a file, as a new conversation, and shows it. Raises an Error in words if it is none. */
export async function imported(text: string): Promise<void> {
  const { conversation, messages: list, pictures: images } = readExport(text);
  await kept((to) => [to.put("messages", ...list), to.put("pictures", ...images)]);
  await saveConversation(conversation);
  await show(conversation.id);
}

function sessionStorageGet(): string {
  try {
    return sessionStorage.getItem(OPEN) ?? localStorage.getItem(OPEN) ?? "";
  } catch {
    return "";
  }
}

/** A tab comes back to its own conversation, a new tab to the one that was open last. */
function sessionStorageSet(id: string): void {
  try {
    sessionStorage.setItem(OPEN, id);
    localStorage.setItem(OPEN, id);
  } catch {
    // the page begins with a new conversation, then
  }
}
