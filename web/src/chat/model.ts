/** What a conversation is: a tree of messages, of which one path is shown. Regenerating and editing make a further child
 * of the same parent, so every version is kept. */
import { newId } from "../shared/ids.ts";

export interface Conversation {
  id: string;
  title: string;
  /** The user has given the title. */
  named: boolean;
  system: string;
  created: number;
  updated: number;
  /** The last message of the path that is shown; null: there is no message. */
  leaf: string | null;
}

export type Role = "user" | "assistant" | "tool";
export type State = "done" | "streaming" | "stopped" | "failed";

export interface Message {
  id: string;
  conversation: string;
  parent: string | null;
  created: number;
  role: Role;
  text: string;
  state: State;
  /** Ids of pictures, of a user's message. */
  pictures?: string[];
  /** Of a tool's message: the call that it answers. */
  callId?: string;
  reasoning?: string;
  /** Milliseconds from the first token to the end of the reasoning. */
  reasoningMs?: number;
  calls?: ToolCall[];
  tokens?: Token[];
  /** "stop", "length", "tool_calls" */
  finish?: string;
  error?: Failure;
  stats?: Stats;
  /** The answer is held to JSON. */
  json?: boolean;
  /** The request and the last event that is in this message: enough to come back to it. */
  request?: { id: string; last: number };
}

export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

export interface Token {
  text: string;
  logprob: number;
  top: { text: string; logprob: number }[];
}

export interface Failure {
  message: string;
  status: number;
  code: string;
}

/** Numbers of an answer; times in milliseconds. What the server does not say is measured here, or left out. */
export interface Stats {
  promptTokens?: number;
  cachedTokens?: number;
  tokens?: number;
  ttftMs?: number;
  queueMs?: number;
  promptMs?: number;
  predictedMs?: number;
  tokensPerSecond?: number;
}

export interface Picture {
  id: string;
  conversation: string;
  name: string;
  width: number;
  height: number;
  /** A `data:` address. */
  data: string;
}

export type Messages = ReadonlyMap<string, Message>;

export function newConversation(system: string): Conversation {
  const now = Date.now();
  return { id: newId(), title: "New chat", named: false, system, created: now, updated: now, leaf: null };
}

export function newMessage(conversation: string, parent: string | null, role: Role, text = ""): Message {
  return { id: newId(), conversation, parent, created: Date.now(), role, text, state: role === "assistant" ? "streaming" : "done" };
}

/** The messages from the first one to `leaf`. */
export function pathTo(messages: Messages, leaf: string | null): Message[] {
  const path: Message[] = [];
  for (let next = leaf; next !== null; ) {
    const message = messages.get(next);
    if (!message || path.length > messages.size) break;
    path.push(message);
    next = message.parent;
  }
  return path.reverse();
}

/** The children of `parent`, the oldest first. */
export function childrenOf(messages: Messages, parent: string | null): Message[] {
  return [...messages.values()].filter((one) => one.parent === parent).sort((a, b) => a.created - b.created);
}

/** Each parent's children, the oldest first. */
export function versionsOf(messages: Messages): Map<string | null, string[]> {
  const found = new Map<string | null, string[]>();
  for (const message of [...messages.values()].sort((a, b) => a.created - b.created)) {
    const list = found.get(message.parent);
    if (list) list.push(message.id);
    else found.set(message.parent, [message.id]);
  }
  return found;
}

/** The newest leaf below `id`. */
export function newestLeaf(messages: Messages, id: string): string {
  const children = versionsOf(messages);
  let leaf = id;
  for (let next = children.get(leaf); next?.length; next = children.get(leaf)) leaf = next.at(-1)!;
  return leaf;
}

/** `id` and everything below it. */
export function subtree(messages: Messages, id: string): string[] {
  const children = versionsOf(messages);
  const found = [id];
  for (let i = 0; i < found.length; i++) found.push(...(children.get(found[i]!) ?? []));
  return found;
}

/** A short title made of the first words. */
export function titleOf(text: string): string {
  const line = text.trim().split("\n", 1)[0]!.replace(/\s+/g, " ");
  if (!line) return "New chat";
  if (line.length <= 48) return line;
  const cut = line.slice(0, 48);
  return `${cut.slice(0, Math.max(cut.lastIndexOf(" "), 24)).trimEnd()}…`;
}

/** Calls of the last answer that no tool's message of the path answers. */
export function openCalls(path: readonly Message[]): ToolCall[] {
  const index = path.findLastIndex((one) => one.role === "assistant");
  const answered = new Set(path.slice(index + 1).map((one) => one.callId));
  return (path[index]?.calls ?? []).filter((call) => !answered.has(call.id));
}
