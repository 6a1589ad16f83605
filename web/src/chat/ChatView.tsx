import { useEffect } from "preact/hooks";
import { Icon } from "../shared/icons.tsx";
import { answeringIn, comeBack } from "./answering.ts";
import * as chats from "./chats.ts";
import { Composer, focusPrompt } from "./Composer.tsx";
import { ExportDialog } from "./ExportDialog.tsx";
import { addPictures, dragging } from "./attachments.ts";
import { loadMarkdown } from "./Markdown.tsx";
import { exportOpen, narrow, settingsOpen, sidebarOpen } from "./panels.ts";
import { SettingsDialog } from "./SettingsDialog.tsx";
import { Sidebar } from "./Sidebar.tsx";
import { Thread } from "./Thread.tsx";

let opened: Promise<void> | undefined;

/** Conversations, the one that is shown, and where the next message is written. */
export function ChatView() {
  useEffect(() => {
    loadMarkdown();
    opened ??= chats.openStorage().then(comeBack);
    addEventListener("keydown", shortcut);
    if (!narrow.value) focusPrompt();
    return () => removeEventListener("keydown", shortcut);
  }, []);
  const covered = narrow.value && sidebarOpen.value;
  return (
    <div class={`chat ${sidebarOpen.value ? "with-sidebar" : ""}`}>
      <Sidebar />
      {covered && <div class="backdrop" onClick={() => (sidebarOpen.value = false)} />}
      <main id="main" class="chat-main" tabIndex={-1} inert={covered} onDragOver={drag} onDragLeave={leave} onDrop={drop}>
        <Thread />
        <Composer />
        {dragging.value && (
          <div class="drop-zone" aria-hidden="true">
            <Icon name="attach" size={28} />
            Drop pictures here
          </div>
        )}
      </main>
      {settingsOpen.value && <SettingsDialog />}
      {exportOpen.value && <ExportDialog />}
    </div>
  );
}

const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;

function drag(event: DragEvent): void {
  if (!hasFiles(event)) return;
  event.preventDefault();
  dragging.value = true;
}

function leave(event: DragEvent): void {
  if (!(event.currentTarget as Element).contains(event.relatedTarget as Node | null)) dragging.value = false;
}

function drop(event: DragEvent): void {
  if (!hasFiles(event)) return;
  event.preventDefault();
  dragging.value = false;
  void addPictures(event.dataTransfer!.files);
  focusPrompt();
}

/** Escape stops the answer, Ctrl+Shift+O begins a chat, Ctrl+K searches. They are listed in the settings. */
function shortcut(event: KeyboardEvent): void {
  if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
  const command = event.ctrlKey || event.metaKey;
  if (event.key === "Escape") {
    if (narrow.value && sidebarOpen.value) sidebarOpen.value = false;
    else answeringIn(chats.current.value.id)?.stop();
  } else if (command && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    chats.startNew();
    focusPrompt();
  } else if (command && event.key.toLowerCase() === "k") {
    event.preventDefault();
    sidebarOpen.value = true;
    requestAnimationFrame(() => document.getElementById("conversation-search")?.focus());
  }
}
