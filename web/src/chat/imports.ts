/** Reads a conversation's file. It may come from anybody, so nothing of it is taken but what is of the right type. */
import { newId } from "../shared/ids.ts";
import type { Conversation, Failure, Message, Picture, Role, State, Stats, Token, ToolCall } from "./model.ts";

export const FORMAT = "lightllm-mp conversation";
const ROLES: readonly Role[] = ["user", "assistant", "tool"];
const STATES: readonly State[] = ["done", "stopped", "failed"];
const STATS: readonly (keyof Stats)[] = [
  "promptTokens", "cachedTokens", "tokens", "ttftMs", "queueMs", "promptMs", "predictedMs", "tokensPerSecond",
];
const PICTURE = /^data:image\/[\w.+-]+;base64,[\w+/=]*$/;

type Json = Record<string, unknown>;

const isObject = (value: unknown): value is Json => typeof value === "object" && value !== null && !Array.isArray(value);
const objects = (value: unknown): Json[] => (Array.isArray(value) ? value.filter(isObject) : []);
const text = (value: unknown): string => (typeof value === "string" ? value : "");
const number = (value: unknown): number => (typeof value === "number" && Number.isFinite(value) ? value : 0);

/** The conversation under new ids: the same file may be taken twice. Raises an Error in words. */
export function readExport(file: string): { conversation: Conversation; messages: Message[]; pictures: Picture[] } {
  let found: unknown;
  try {
    found = JSON.parse(file);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (!isObject(found) || found["format"] !== FORMAT || !isObject(found["conversation"]))
    throw new Error("This file is no conversation of this page.");
  const ids = new Map<string, string>();
  const renewed = (id: unknown): string => {
    const known = text(id);
    if (!ids.has(known)) ids.set(known, newId());
    return ids.get(known)!;
  };
  const own = found["conversation"];
  const conversation = renewed(own["id"]);
  const leaf = typeof own["leaf"] === "string" ? renewed(own["leaf"]) : null;
  return {
    conversation: {
      id: conversation,
      title: text(own["title"]) || "Imported chat",
      named: true,
      system: text(own["system"]),
      created: number(own["created"]),
      updated: Date.now(),
      leaf,
    },
    messages: objects(found["messages"]).map((one) => readMessage(one, conversation, renewed)),
    pictures: objects(found["pictures"])
      .filter((one) => PICTURE.test(text(one["data"])))
      .map((one) => ({
        id: renewed(one["id"]),
        conversation,
        name: text(one["name"]),
        width: number(one["width"]),
        height: number(one["height"]),
        data: text(one["data"]),
      })),
  };
}

function readMessage(one: Json, conversation: string, renewed: (id: unknown) => string): Message {
  const message: Message = {
    id: renewed(one["id"]),
    conversation,
    parent: typeof one["parent"] === "string" ? renewed(one["parent"]) : null,
    created: number(one["created"]),
    role: ROLES.find((role) => role === one["role"]) ?? "user",
    text: text(one["text"]),
    state: STATES.find((state) => state === one["state"]) ?? "stopped",
  };
  const more: Partial<Message> = {
    pictures: Array.isArray(one["pictures"]) ? one["pictures"].map(renewed) : undefined,
    callId: text(one["callId"]) || undefined,
    reasoning: text(one["reasoning"]) || undefined,
    reasoningMs: number(one["reasoningMs"]) || undefined,
    calls: filled(objects(one["calls"]).map(readCall)),
    tokens: filled(objects(one["tokens"]).map(readToken)),
    finish: text(one["finish"]) || undefined,
    error: isObject(one["error"]) ? readFailure(one["error"]) : undefined,
    stats: isObject(one["stats"]) ? readStats(one["stats"]) : undefined,
    json: one["json"] === true || undefined,
  };
  return Object.assign(message, Object.fromEntries(Object.entries(more).filter(([, value]) => value !== undefined)));
}

const filled = <T>(list: T[]): T[] | undefined => (list.length ? list : undefined);
const readCall = (one: Json): ToolCall => ({ id: text(one["id"]), name: text(one["name"]), arguments: text(one["arguments"]) });
const readShort = (one: Json) => ({ text: text(one["text"]), logprob: number(one["logprob"]) });
const readToken = (one: Json): Token => ({ ...readShort(one), top: objects(one["top"]).map(readShort) });
const readFailure = (one: Json): Failure => ({ message: text(one["message"]), status: number(one["status"]), code: text(one["code"]) });

function readStats(one: Json): Stats {
  return Object.fromEntries(STATS.flatMap((name) => (typeof one[name] === "number" ? [[name, number(one[name])]] : [])));
}
