/** Requests to this server, with the API key of this tab, and its errors as ApiError. */
import { signal } from "@preact/signals";

const KEY = "lightllm-mp.key";

/** The API key: it lives as long as the tab. */
export const apiKey = signal(readKey());
/** Set while a request waits for a key: why it is asked for. */
export const keyWanted = signal<string | undefined>(undefined);

function readKey(): string {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function setKey(key: string): void {
  apiKey.value = key.trim();
  keyWanted.value = undefined;
  try {
    if (apiKey.value) sessionStorage.setItem(KEY, apiKey.value);
    else sessionStorage.removeItem(KEY);
  } catch {
    // it holds for this page, then
  }
}

/** An answer that is no success. */
export class ApiError extends Error {
  /** `status`: 0 if the error came inside a stream; `retryAfter`: seconds, if the server says when to come again. */
  constructor(
    message: string,
    readonly status: number,
    readonly code = "",
    readonly param = "",
    readonly retryAfter: number | undefined = undefined,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

/** fetch() with the key. Raises ApiError for a status other than 2xx, TypeError if there is no connection. A 401 also
 * asks the user for a key (`keyWanted`). */
export async function request(path: string, options: RequestInit = {}): Promise<Response> {
  const headers = new Headers(options.headers);
  if (apiKey.value) headers.set("Authorization", `Bearer ${apiKey.value}`);
  const response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
  if (response.ok) return response;
  const error = await readError(response);
  if (error.status === 401) keyWanted.value = apiKey.value ? "This key is not valid here." : "This server needs an API key.";
  throw error;
}

async function readError(response: Response): Promise<ApiError> {
  const text = await response.text().catch(() => "");
  const seconds = Number(response.headers.get("Retry-After") ?? NaN);
  return errorOf(text, response.status, Number.isFinite(seconds) ? seconds : undefined);
}

/** The error in a body or event: `{"error": {"message", "code", "param"}}`. */
export function errorOf(text: string, status: number, retryAfter?: number): ApiError {
  try {
    const { message, code, param } = JSON.parse(text).error;
    return new ApiError(String(message), status, String(code ?? ""), String(param ?? ""), retryAfter);
  } catch {
    return new ApiError(`The server answered ${status}.`, status, "", "", retryAfter);
  }
}
