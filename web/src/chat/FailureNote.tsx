import { apiKey, keyWanted } from "../shared/api.ts";
import { serverInfo } from "../shared/server_info.ts";
import { retry } from "./answering.ts";
import type { Failure, Message } from "./model.ts";
import { settingsOpen } from "./panels.ts";

interface Props {
  message: Message;
  error: Failure;
  last: boolean;
}

/** Why there is no answer, and what to do about it. */
export function FailureNote({ message, error, last }: Props) {
  return (
    <div class="failure" role="alert">
      <p>
        <strong>{titleOf(error)}</strong> {error.message}
      </p>
      {hintOf(error) && <p class="hint">{hintOf(error)}</p>}
      {last && (
        <div class="failure-actions">
          {error.status === 401 && (
            <button type="button" class="button" onClick={() => (keyWanted.value = apiKey.value ? "Another key may be valid." : "")}>
              Enter a key
            </button>
          )}
          {error.status === 400 && (
            <button type="button" class="button" onClick={() => (settingsOpen.value = true)}>Settings</button>
          )}
          <button type="button" class="button" onClick={() => void retry(message)}>Try again</button>
        </div>
      )}
    </div>
  );
}

function titleOf({ status, code }: Failure): string {
  if (code === "context_length_exceeded") return "The conversation is too long.";
  if (code === "connection") return "No connection.";
  if (status === 401 || status === 403) return "Not permitted.";
  if (status === 413) return "The message is too large.";
  if (status === 429) return "The server is full.";
  if (status === 503) return "The server is not available.";
  if (status === 504) return "This took too long.";
  return status === 400 ? "The request was refused." : "This failed.";
}

function hintOf({ code }: Failure): string | undefined {
  const most = serverInfo.value?.facts?.max_context;
  if (code === "context_length_exceeded")
    return `The model reads ${most ? `at most ${most} tokens` : "no more than that"}. Shorten a message, or begin a new chat.`;
  if (code === "connection") return "Is the server running?";
  return undefined;
}
