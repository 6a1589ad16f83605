/** Asking the model: sending, stopping, regenerating, editing, continuing, and coming back after a reload. */
import { signal, type Signal } from "@preact/signals";
import { ApiError, request } from "../shared/api.ts";
import { newId } from "../shared/ids.ts";
import { announce } from "../shared/announcer.ts";
import { serverInfo } from "../shared/server_info.ts";
import { applyChunk, finishStats, progressOf, type Draft } from "./chunks.ts";
import * as chats from "./chats.ts";
import { newMessage, pathTo, type Failure, type Message, type Picture, type Stats } from "./model.ts";
import { chatBody, streamed, type ChatBody } from "./request_body.ts";
import { settings } from "./settings.ts";
import { answer, type Wait } from "./stream.ts";

export interface Answering {
  conversation: string;
  /** The message as it grows, at most once a frame. */
  message: Signal<Message>;
  progress: Signal<Stats>;
  wait: Signal<Wait | undefined>;
  stop: () => void;
  /** Nothing of it is written after that. */
  ended: Promise<void>;
}

/** The answers in the making, by message. */
export const answering = signal<ReadonlyMap<string, Answering>>(new Map());
/** Whether the server takes `return_timings`; it is asked once. */
let timings = true;
/** Milliseconds between writes of a growing answer to the database. */
const KEEP_EVERY = 1000;

export const answeringIn = (conversation: string): Answering | undefined =>
  [...answering.value.values()].find((one) => one.conversation === conversation);

export async function send(text: string, images: Picture[]): Promise<void> {
  const message = newMessage(chats.current.value.id, chats.current.value.leaf, "user", text);
  if (images.length) message.pictures = images.map((one) => one.id);
  await ask([message], images);
}

/** The user's message in other words, as a version beside it. */
export async function editUser(message: Message, text: string): Promise<void> {
  await ask([{ ...message, ...newMessage(message.conversation, message.parent, "user", text) }]);
}

/** The answer in other words, as a version beside it; nothing is asked. */
export async function editAnswer(message: Message, text: string): Promise<void> {
  const edited: Message = { ...newMessage(message.conversation, message.parent, "assistant", text), state: "done" };
  if (message.reasoning) edited.reasoning = message.reasoning;
  await chats.append([edited]);
}

/** Another answer to the same, as a version beside it. */
export async function regenerate(message: Message): Promise<void> {
  await ask([], [], message.parent);
}

/** The same request again, after an answer that failed; what there was of it is gone. */
export async function retry(message: Message): Promise<void> {
  const { id, conversation, parent, created, role, json } = message;
  const again: Message = { id, conversation, parent, created, role, text: "", state: "streaming", ...(json && { json }) };
  await run(again, bodyOf(pathTo(chats.messages.value, parent)));
}

/** Goes on with an answer that ended too early. */
export async function goOn(message: Message): Promise<void> {
  const before = pathTo(chats.messages.value, message.id);
  const { stats: _, finish: __, ...begun } = message;
  await run(begun, bodyOf(before, true));
}

/** What the tools answered to the open calls. */
export async function answerCalls(results: ReadonlyMap<string, string>): Promise<void> {
  const { id, leaf } = chats.current.value;
  const added: Message[] = [];
  for (const [callId, text] of results) {
    const parent = added.at(-1)?.id ?? leaf;
    added.push({ ...newMessage(id, parent, "tool", text), callId, created: Date.now() + added.length });
  }
  await ask(added);
}

async function ask(added: Message[], images: Picture[] = [], parent?: string | null): Promise<void> {
  const { id } = chats.current.value;
  const draft = newMessage(id, added.at(-1)?.id ?? parent ?? null, "assistant");
  draft.created = Math.max(Date.now(), (added.at(-1)?.created ?? 0) + 1);
  if (settings.value.format !== "text") draft.json = true;
  await chats.append([...added, draft], images);
  await run(draft, bodyOf(pathTo(chats.messages.value, draft.parent)));
}

function bodyOf(path: Message[], resumeLast = false): ChatBody {
  return chatBody({
    model: serverInfo.value?.model_name ?? "default",
    system: chats.current.value.system,
    path,
    pictures: chats.pictures.value,
    settings: settings.value,
    resumeLast,
  });
}

/** The body that would ask for an answer to the path that is shown, or made its last answer. */
export function bodyShown(): ChatBody {
  const path = chats.path.value;
  return bodyOf(path.at(-1)?.role === "assistant" ? path.slice(0, -1) : path);
}

/** A conversation is gone, and nobody waits for its answer. */
export async function remove(conversation: string): Promise<void> {
  const found = answeringIn(conversation);
  found?.stop();
  await found?.ended;
  await chats.removeConversation(conversation);
}

export async function removeAll(): Promise<void> {
  for (const { id } of chats.conversations.value) await remove(id);
}

/** Answers that a reload interrupted go on. One that another tab writes is left to it, until that tab is closed. */
export async function comeBack(): Promise<void> {
  const unfinished = (await chats.unfinished()).filter(({ id }) => !answering.value.has(id));
  await Promise.all(unfinished.map(({ id }) => alone(id, async () => {
    const message = await chats.stored(id);
    if (message?.state === "streaming") await fetchAnswer(message, undefined);
    else if (message) await chats.saveMessage(message); // the other tab has completed it
  })));
}

/** Asks for an answer and fetches it into `begun`. */
async function run(begun: Message, body: ChatBody): Promise<void> {
  await alone(begun.id, () => fetchAnswer(begun, body));
}

/** Of all tabs, one at a time fetches a message. */
async function alone(id: string, act: () => Promise<void>): Promise<void> {
  const locks = navigator.locks as LockManager | undefined; // not where the page has no secure context
  await (locks ? locks.request(`lightllm-mp.answer.${id}`, act) : act());
}

/** `body`: undefined if it has been asked for before. */
async function fetchAnswer(begun: Message, body: ChatBody | undefined): Promise<void> {
  const message: Message = { ...begun, state: "streaming" };
  if (body) message.request = { id: newId(), last: 0 };
  delete message.error;
  const controller = new AbortController();
  const draft: Draft = { message, sent: performance.now(), events: 0 };
  const shown = signal(message);
  const progress = signal<Stats>({});
  const wait = signal<Wait | undefined>(undefined);
  const { conversation } = message;
  const { promise: ended, resolve: end } = Promise.withResolvers<void>();
  const entry: Answering = { conversation, message: shown, progress, wait, stop: () => controller.abort(), ended };
  answering.value = new Map(answering.value).set(message.id, entry);

  const show = framed(() => {
    shown.value = { ...message };
    progress.value = body ? progressOf(draft, performance.now()) : {};
  });
  const keep = setInterval(() => void chats.keepDraft({ ...message }), KEEP_EVERY);
  const leave = () => void chats.keepDraft({ ...message });
  addEventListener("pagehide", leave);
  try {
    if (!message.request) throw new ApiError("This answer was never asked for.", 0, "lost");
    await chats.saveMessage({ ...message });
    await follow(draft, body, controller.signal, wait, show);
    message.state = "done";
    finishStats(draft, performance.now(), body === undefined);
  } catch (error) {
    fail(message, error, body === undefined);
    if (controller.signal.aborted) {
      finishStats(draft, performance.now(), body === undefined);
      discard(message);
    }
  } finally {
    clearInterval(keep);
    removeEventListener("pagehide", leave);
    delete message.request;
    await chats.saveMessage({ ...message });
    const left = new Map(answering.value);
    left.delete(message.id);
    answering.value = left;
    end();
  }
  tell(message);
}

async function follow(
  draft: Draft,
  body: ChatBody | undefined,
  signal: AbortSignal,
  wait: Signal<Wait | undefined>,
  show: () => void,
): Promise<void> {
  const { message } = draft;
  const request = message.request!;
  const onWait = (found: Wait | undefined) => (wait.value = found);
  const parts = { id: request.id, last: request.last, signal, onWait };
  try {
    const sent = body && streamed(body, settings.value, timings);
    for await (const { chunk, last } of answer({ ...parts, body: sent })) {
      if (last > request.last) draft.events++;
      request.last = last;
      applyChunk(draft, chunk, performance.now());
      show();
    }
  } catch (error) {
    if (!(error instanceof ApiError && error.param === "return_timings" && body)) throw error;
    timings = false; // a server of before it
    request.id = newId();
    await follow(draft, body, signal, wait, show);
  }
}

function fail(message: Message, error: unknown, resumed: boolean): void {
  if (error instanceof DOMException && error.name === "AbortError") {
    message.state = "stopped";
  } else if (resumed && error instanceof ApiError && (error.status === 404 || error.code === "lost")) {
    message.state = message.text ? "stopped" : "failed";
    if (!message.text) message.error = { message: "The answer was interrupted.", status: 0, code: "lost" };
  } else {
    message.state = "failed";
    message.error = failureOf(error);
  }
}

export function failureOf(error: unknown): Failure {
  if (error instanceof ApiError) return { message: error.message, status: error.status, code: error.code };
  return { message: "The server cannot be reached.", status: 0, code: "connection" };
}

/** Tells the server that nobody wants the rest, so that it computes no more of it. */
function discard(message: Message): void {
  const id = message.request?.id;
  if (id) request(`requests/${encodeURIComponent(id)}`, { method: "DELETE" }).catch(() => {});
}

/** Screen readers hear the finished text once, not every token. */
function tell(message: Message): void {
  if (message.conversation !== chats.current.value.id) return;
  if (message.state === "failed") announce(`Error: ${message.error?.message ?? "no answer"}`);
  else announce(`${message.state === "stopped" ? "Stopped. " : ""}Answer: ${message.text || "without text"}`);
}

/** Calls `act` once before the next paint, or soon if the page is hidden. */
function framed(act: () => void): () => void {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    const now = () => {
      asked = false;
      act();
    };
    if (document.hidden) setTimeout(now, 200);
    else requestAnimationFrame(now);
  };
}
