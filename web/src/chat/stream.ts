/** The answer to a chat as a stream that comes back by itself: when the connection breaks, or the server's process for
 * it dies, the rest is fetched by the request's id, and each event is seen once. */
import { ApiError, errorOf, request } from "../shared/api.ts";
import { readEvents } from "../shared/sse.ts";

export interface Ask {
  /** X-Request-Id */
  id: string;
  /** The body to send; undefined: the request has been sent, only the rest is fetched. */
  body: object | undefined;
  /** The number of the last event that is known already. */
  last: number;
  signal: AbortSignal;
  /** Says what is being waited for; undefined: events come. */
  onWait?: (wait: Wait | undefined) => void;
}

export interface Wait {
  reason: "busy" | "lost";
  message: string;
  /** When the next attempt begins (Date.now()). */
  until: number;
  /** Begins it now. */
  now: () => void;
}

export interface Piece {
  chunk: object;
  /** The number of the last event that is complete with this chunk. */
  last: number;
}

/** Seconds between attempts to come back, the last one again and again until GIVE_UP. */
const PAUSES = [0.2, 0.5, 1, 2, 3];
/** Seconds without a connection after which an answer is given up: the server keeps it for 60 (--resume-window). */
const GIVE_UP = 75;
/** How often a request that the server has no room for is sent again. */
const BUSY_TRIES = 10;

/** Raises ApiError (also for an error inside the stream), TypeError if the server stays away, AbortError on abort. */
export async function* answer(ask: Ask): AsyncGenerator<Piece, void, void> {
  let { last } = ask;
  let known = ask.body === undefined; // whether the server may know the request
  let busy = 0;
  let lost: number | undefined; // when the connection broke
  let tries = 0;
  let complete = false;
  for (;;) {
    try {
      const response = await (known ? comeBack(ask, last) : send(ask));
      known = true;
      [lost, tries] = [undefined, 0];
      ask.onWait?.(undefined);
      for await (const piece of pieces(response, last)) {
        if (piece === "done") {
          complete = true; // the body ends with it
          continue;
        }
        last = piece.last;
        yield piece;
      }
      if (complete) return;
      throw new TypeError("the stream ended too early");
    } catch (error) {
      if (complete) return;
      if (ask.signal.aborted) throw new DOMException("stopped", "AbortError");
      if (error instanceof ApiError) {
        if (error.status === 404 && known && last === 0 && ask.body !== undefined) {
          known = false; // it never arrived: send it (again)
        } else if ((error.status === 429 || error.status === 503) && busy++ < BUSY_TRIES) {
          await wait(ask, "busy", error.message, error.retryAfter ?? 2);
        } else {
          throw error;
        }
      } else {
        lost ??= Date.now();
        if (Date.now() - lost > GIVE_UP * 1000) throw error;
        known = true;
        await wait(ask, "lost", "The connection is lost.", PAUSES[Math.min(tries++, PAUSES.length - 1)]!);
      }
    }
  }
}

function send({ id, body, signal }: Ask): Promise<Response> {
  return request("v1/chat/completions", {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", Accept: "text/event-stream", "X-Request-Id": id },
    signal,
  });
}

function comeBack({ id, signal }: Ask, last: number): Promise<Response> {
  const headers = { Accept: "text/event-stream", "Last-Event-ID": String(last) };
  return request(`requests/${encodeURIComponent(id)}`, { headers, signal });
}

/** The chunks of a response. An event may be several chunks, of which the last has the number; the others count when it
 * has come, since the whole event comes again if it has not. */
async function* pieces(response: Response, last: number): AsyncGenerator<Piece | "done", void, void> {
  let held: object[] = [];
  for await (const { id, data } of readEvents(response.body!)) {
    if (data === "[DONE]") {
      for (const chunk of held) yield { chunk, last };
      yield "done";
      continue;
    }
    const chunk = parsed(data);
    if ("error" in chunk) throw errorOf(data, 0);
    held.push(chunk);
    if (id === undefined) continue;
    last = id;
    for (const one of held) yield { chunk: one, last };
    held = [];
  }
}

function parsed(data: string): object {
  try {
    const value: unknown = JSON.parse(data);
    if (typeof value === "object" && value !== null) return value;
  } catch {
    // the same as JSON that is no object
  }
  throw new ApiError("The server's answer cannot be read.", 0, "unreadable");
}

/** Returns after `seconds`, when the user says so, or on abort. */
async function wait({ onWait, signal }: Ask, reason: Wait["reason"], message: string, seconds: number): Promise<void> {
  await new Promise<void>((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, seconds * 1000);
    signal.addEventListener("abort", end);
    onWait?.({ reason, message, until: Date.now() + seconds * 1000, now: end });
  });
}
