/** Chunks of /v1/chat/completions become a message. */
import type { Message, Stats, Token } from "./model.ts";

/** A message in the making and when its parts came, in milliseconds of one clock. */
export interface Draft {
  message: Message;
  sent: number;
  first?: number;
  /** Tokens of this request, counted by its events. */
  events: number;
}

interface LogprobJson {
  token: string;
  logprob: number;
  top_logprobs?: { token: string; logprob: number }[];
}

interface ChunkJson {
  choices?: {
    delta?: {
      content?: string | null;
      reasoning_content?: string | null;
      tool_calls?: { index: number; id?: string; function?: { name?: string; arguments?: string } }[];
    };
    logprobs?: { content?: LogprobJson[] | null } | null;
    finish_reason?: string | null;
  }[];
  usage?: {
    prompt_tokens?: number;
    completion_tokens?: number;
    prompt_tokens_details?: { cached_tokens?: number } | null;
  } | null;
  timings?: Partial<Record<TimingName, number>> | null;
}

type TimingName =
  | "queue_ms" | "prompt_n" | "cache_n" | "prompt_ms" | "predicted_n" | "predicted_ms" | "predicted_per_second" | "ttft_ms";

/** Puts a chunk into the draft's message. `now`: of the clock of `draft.sent`. */
export function applyChunk(draft: Draft, chunk: ChunkJson, now: number): void {
  const { message } = draft;
  const choice = chunk.choices?.[0];
  const delta = choice?.delta;
  const says = delta && (delta.content || delta.reasoning_content || delta.tool_calls?.length);
  if (says) draft.first ??= now;
  if (delta?.reasoning_content) {
    message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
    message.reasoningMs = now - draft.first!;
  }
  if (delta?.content) message.text += delta.content;
  for (const { index, id, function: call } of delta?.tool_calls ?? []) {
    const calls = (message.calls ??= []);
    if (!(index >= 0 && index <= calls.length)) continue; // calls come in order
    const found = (calls[index] ??= { id: id ?? "", name: "", arguments: "" });
    calls[index] = { id: found.id, name: found.name + (call?.name ?? ""), arguments: found.arguments + (call?.arguments ?? "") };
  }
  if (choice?.logprobs?.content?.length) (message.tokens ??= []).push(...choice.logprobs.content.map(tokenOf));
  if (choice?.finish_reason) message.finish = choice.finish_reason;
  if (chunk.usage || chunk.timings) message.stats = { ...message.stats, ...statsOf(chunk) };
}

function tokenOf({ token, logprob, top_logprobs }: LogprobJson): Token {
  return { text: token, logprob, top: (top_logprobs ?? []).map((one) => ({ text: one.token, logprob: one.logprob })) };
}

function statsOf({ usage, timings }: ChunkJson): Stats {
  const found: Stats = {
    promptTokens: usage?.prompt_tokens,
    cachedTokens: usage?.prompt_tokens_details?.cached_tokens,
    tokens: usage?.completion_tokens,
    ttftMs: timings?.ttft_ms,
    queueMs: timings?.queue_ms,
    promptMs: timings?.prompt_ms,
    predictedMs: timings?.predicted_ms,
    tokensPerSecond: timings?.predicted_per_second,
  };
  return Object.fromEntries(Object.entries(found).filter(([, value]) => typeof value === "number")) as Stats;
}

/** The numbers of an answer that still grows, as they are seen here. */
export function progressOf({ sent, first, events }: Draft, now: number): Stats {
  if (first === undefined) return {};
  const rate = events > 1 && now > first ? { tokensPerSecond: ((events - 1) * 1000) / (now - first) } : {};
  return { ttftMs: first - sent, tokens: events, ...rate };
}

/** Fills in what the server did not say. `resumed`: the clock here missed a part, so its times mean nothing. */
export function finishStats(draft: Draft, now: number, resumed: boolean): void {
  const stats: Stats = { ...draft.message.stats };
  if (draft.first !== undefined && !resumed) {
    const tokens = stats.tokens ?? draft.events;
    stats.ttftMs ??= draft.first - draft.sent;
    stats.predictedMs ??= now - draft.first;
    if (tokens > 1 && stats.predictedMs > 0) stats.tokensPerSecond ??= ((tokens - 1) * 1000) / stats.predictedMs;
  }
  if (!resumed) stats.tokens ??= draft.events;
  draft.message.stats = stats;
}
