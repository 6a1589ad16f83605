/** A path of messages with settings becomes a body of /v1/chat/completions. */
import type { Message, Picture } from "./model.ts";
import { NUMBERS, wrong, wrongJson, type Settings } from "./settings.ts";

export interface BodyParts {
  model: string;
  system: string;
  path: readonly Message[];
  pictures: ReadonlyMap<string, Picture>;
  settings: Settings;
  /** The last message is the beginning of the answer. */
  resumeLast?: boolean;
}

export interface ChatBody {
  model: string;
  messages: object[];
  [field: string]: unknown;
}

/** The body without the fields that say how the answer travels (see `streamed`). */
export function chatBody({ model, system, path, pictures, settings, resumeLast }: BodyParts): ChatBody {
  const messages = path.map((message) => messageBody(message, pictures));
  if (system.trim()) messages.unshift({ role: "system", content: system });
  const body: ChatBody = { model, messages, ...sampling(settings), ...form(settings) };
  if (resumeLast) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
  return body;
}

/** The same as a stream with all its numbers. */
export function streamed(body: ChatBody, settings: Settings, timings: boolean): ChatBody {
  const found: ChatBody = { ...body, stream: true, stream_options: { include_usage: true } };
  if (settings.logprobs) Object.assign(found, { logprobs: true, top_logprobs: 5 });
  if (timings) found["return_timings"] = true;
  return found;
}

function messageBody(message: Message, pictures: ReadonlyMap<string, Picture>): object {
  const { role, text } = message;
  if (role === "tool") return { role, tool_call_id: message.callId, content: text };
  if (role === "user") {
    const images = (message.pictures ?? []).flatMap((id) => pictures.get(id) ?? []);
    if (!images.length) return { role, content: text };
    const parts = images.map((one) => ({ type: "image_url", image_url: { url: one.data } }));
    return { role, content: [...parts, ...(text ? [{ type: "text", text }] : [])] };
  }
  const found: Record<string, unknown> = { role, content: text };
  if (message.reasoning) found["reasoning_content"] = message.reasoning;
  if (message.calls?.length)
    found["tool_calls"] = message.calls.map(({ id, name, arguments: args }) => ({
      id,
      type: "function",
      function: { name, arguments: args },
    }));
  return found;
}

function sampling(settings: Settings): Record<string, unknown> {
  const found: Record<string, unknown> = {};
  for (const field of NUMBERS) {
    const value = String(settings[field.name]).trim();
    if (value && !wrong(field, value)) found[field.name] = Number(value);
  }
  const stop = settings.stop.split("\n").filter(Boolean);
  if (stop.length) found["stop"] = stop;
  if (settings.reasoning_effort) found["reasoning_effort"] = settings.reasoning_effort;
  return found;
}

/** Tools, and what the answer is held to. */
function form(settings: Settings): Record<string, unknown> {
  const found: Record<string, unknown> = {};
  if (settings.tools.trim() && !wrongJson(settings.tools, "list")) {
    const tools = JSON.parse(settings.tools) as unknown[];
    if (tools.length) found["tools"] = tools;
  }
  if (settings.format === "json_object") found["response_format"] = { type: "json_object" };
  if (settings.format === "json_schema" && settings.schema.trim() && !wrongJson(settings.schema, "object"))
    found["response_format"] = {
      type: "json_schema",
      json_schema: { name: "answer", schema: JSON.parse(settings.schema) as object },
    };
  return found;
}
