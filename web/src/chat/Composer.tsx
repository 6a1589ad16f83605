import { signal } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";
import { IconButton } from "../shared/IconButton.tsx";
import { serverInfo } from "../shared/server_info.ts";
import { answeringIn, send } from "./answering.ts";
import { addPictures, attached, removePicture, takePictures, trouble } from "./attachments.ts";
import * as chats from "./chats.ts";
import { openCalls } from "./model.ts";
import { settings } from "./settings.ts";

/** What is being written. */
export const prompt = signal("");

/** The keyboard goes on here after what had the focus is gone. A touch screen's keyboard stays away until it is wanted. */
export function focusPrompt(): void {
  if (!matchMedia("(hover: none)").matches) requestAnimationFrame(() => document.getElementById("prompt")?.focus());
}

async function submit(): Promise<void> {
  const text = prompt.value.trim();
  if (answeringIn(chats.current.value.id) || (!text && !attached.value.length)) return;
  prompt.value = "";
  await send(text, takePictures());
}

function keyDown(event: KeyboardEvent): void {
  if (event.key !== "Enter" || event.isComposing) return;
  const command = event.ctrlKey || event.metaKey;
  if (settings.value.enterSends ? event.shiftKey : !command) return; // a new line
  event.preventDefault();
  void submit();
}

function paste(event: ClipboardEvent): void {
  const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
  if (!files.length) return;
  event.preventDefault();
  void addPictures(files);
}

/** Where the next message is written. */
export function Composer() {
  const area = useRef<HTMLTextAreaElement>(null);
  const busy = answeringIn(chats.current.value.id);
  const sees = serverInfo.value?.takes_images ?? false;
  const waiting = !busy && openCalls(chats.path.value).length > 0;
  useLayoutEffect(() => grow(area.current!), [prompt.value]);
  return (
    <form
      id="composer"
      class="composer"
      aria-label="Message"
      onSubmit={(event) => {
        event.preventDefault();
        void submit();
      }}
    >
      <div class="composer-box">
        <Attached />
        <textarea
          id="prompt"
          ref={area}
          rows={1}
          aria-label="Message"
          placeholder={waiting ? "Answer the tool calls above, or write a message" : "Write a message"}
          value={prompt.value}
          onInput={(event) => (prompt.value = event.currentTarget.value)}
          onKeyDown={keyDown}
          onPaste={paste}
        />
        <div class="composer-bar">
          {sees && <AttachButton />}
          <Modes />
          {busy ? (
            <IconButton
              id="stop"
              class="round"
              icon="stop"
              label="Stop"
              onClick={() => {
                busy.stop();
                focusPrompt();
              }}
            />
          ) : (
            <IconButton
              id="send"
              class="round"
              type="submit"
              icon="arrowUp"
              label="Send"
              disabled={!prompt.value.trim() && !attached.value.length}
            />
          )}
        </div>
      </div>
      {trouble.value && <p class="composer-trouble" role="alert">{trouble.value}</p>}
    </form>
  );
}

function grow(area: HTMLTextAreaElement): void {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

function Attached() {
  if (!attached.value.length) return null;
  return (
    <ul class="attached" aria-label="Pictures to send">
      {attached.value.map((one) => (
        <li key={one.id}>
          <img src={one.data} alt={one.name} />
          <IconButton icon="close" size={14} label={`Remove ${one.name}`} onClick={() => removePicture(one.id)} />
        </li>
      ))}
    </ul>
  );
}

function AttachButton() {
  const input = useRef<HTMLInputElement>(null);
  return (
    <>
      <IconButton id="attach" icon="attach" label="Add pictures" onClick={() => input.current?.click()} />
      <input
        id="picture-file"
        ref={input}
        type="file"
        accept="image/*"
        multiple
        hidden
        aria-label="Pictures"
        onChange={(event) => {
          const { files } = event.currentTarget;
          if (files) void addPictures([...files]).then(focusPrompt);
          event.currentTarget.value = "";
        }}
      />
    </>
  );
}

/** What differs from a plain chat, so that nobody wonders. */
function Modes() {
  const { format, tools, logprobs } = settings.value;
  const modes = [
    format !== "text" && "JSON",
    tools.trim() && "tools",
    logprobs && "probabilities",
    chats.current.value.system.trim() && "system prompt",
  ].filter(Boolean);
  return <span class="modes">{modes.join(" · ")}</span>;
}
