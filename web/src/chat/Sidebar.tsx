import { useEffect, useRef, useState } from "preact/hooks";
import { Confirm } from "../shared/Confirm.tsx";
import { Icon } from "../shared/icons.tsx";
import { IconButton } from "../shared/IconButton.tsx";
import { answeringIn, remove } from "./answering.ts";
import * as chats from "./chats.ts";
import { focusPrompt } from "./Composer.tsx";
import type { Conversation } from "./model.ts";
import { narrow, sidebarOpen } from "./panels.ts";

function chosen(): void {
  if (narrow.value) sidebarOpen.value = false;
  focusPrompt();
}

/** The conversations of this browser. */
export function Sidebar() {
  const [words, setWords] = useState("");
  const found = useSearch(words);
  const [leaving, setLeaving] = useState<Conversation>();
  const [renaming, setRenaming] = useState("");
  const shown = chats.conversations.value.filter((one) => !found || found.has(one.id));
  return (
    <aside id="sidebar" class="sidebar" aria-label="Conversations" inert={!sidebarOpen.value}>
      <div class="sidebar-head">
        <button
          id="new-chat"
          type="button"
          class="button wide"
          title="New chat (Ctrl+Shift+O)"
          onClick={() => {
            chats.startNew();
            chosen();
          }}
        >
          <Icon name="plus" size={18} />
          New chat
        </button>
        <label class="search">
          <Icon name="search" size={16} />
          <span class="visually-hidden">Search conversations</span>
          <input
            id="conversation-search"
            type="search"
            placeholder="Search"
            value={words}
            onInput={(event) => setWords(event.currentTarget.value)}
          />
        </label>
      </div>
      <ul id="conversations" class="conversations">
        {shown.map((one) => (
          <li key={one.id} class="conversation" data-id={one.id}>
            {renaming === one.id ? (
              <Rename conversation={one} onEnd={() => setRenaming("")} />
            ) : (
              <Entry conversation={one} onRename={() => setRenaming(one.id)} onDelete={() => setLeaving(one)} />
            )}
          </li>
        ))}
      </ul>
      {!shown.length && <p class="sidebar-note">{words.trim() ? "Nothing found." : "Your conversations will be here."}</p>}
      <div class="sidebar-foot">
        <ImportButton />
        {!chats.lasting.value && <p class="sidebar-note">This browser cannot keep conversations: it has no room, or storage is switched off. A reload loses them.</p>}
      </div>
      {leaving && (
        <Confirm
          title="Delete conversation"
          text={`“${leaving.title}” will be gone from this browser for ever.`}
          action="Delete"
          onConfirm={() => void remove(leaving.id)}
          onClose={() => setLeaving(undefined)}
        />
      )}
    </aside>
  );
}

interface EntryProps {
  conversation: Conversation;
  onRename: () => void;
  onDelete: () => void;
}

function Entry({ conversation, onRename, onDelete }: EntryProps) {
  const { id, title } = conversation;
  return (
    <>
      <button
        type="button"
        class="conversation-title"
        title={title}
        aria-current={chats.current.value.id === id ? "true" : undefined}
        onClick={() => {
          void chats.show(id);
          chosen();
        }}
      >
        {answeringIn(id) && <span class="busy-dot" role="img" aria-label="answering" />}
        <span>{title}</span>
      </button>
      <IconButton icon="edit" size={16} label={`Rename ${title}`} onClick={onRename} />
      <IconButton icon="trash" size={16} label={`Delete ${title}`} onClick={onDelete} />
    </>
  );
}

function Rename({ conversation, onEnd }: { conversation: Conversation; onEnd: () => void }) {
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => input.current?.select(), []);
  const ended = useRef(false);
  const end = (keep: boolean, byKey = true) => {
    if (ended.current) return; // the field loses the focus when it goes
    ended.current = true;
    const title = input.current!.value.trim();
    if (keep && title && title !== conversation.title) void chats.rename(conversation.id, title);
    onEnd();
    if (byKey) requestAnimationFrame(() => document.querySelector<HTMLElement>(`[data-id="${conversation.id}"] button`)?.focus());
  };
  return (
    <input
      ref={input}
      class="rename"
      aria-label="New title"
      defaultValue={conversation.title}
      onBlur={() => end(true, false)}
      onKeyDown={(event) => {
        if (event.key === "Enter" && !event.isComposing) end(true);
        if (event.key !== "Escape") return;
        event.preventDefault();
        end(false);
      }}
    />
  );
}

/** Ids of what is found; undefined: nothing is looked for. */
function useSearch(words: string): Set<string> | undefined {
  const [found, setFound] = useState<Set<string>>();
  useEffect(() => {
    let late = false;
    if (!words.trim()) setFound(undefined);
    else
      void chats.search(words).then((ids) => {
        if (!late) setFound(ids);
      });
    return () => {
      late = true;
    };
  }, [words, chats.conversations.value]);
  return found;
}

function ImportButton() {
  const input = useRef<HTMLInputElement>(null);
  const [trouble, setTrouble] = useState("");
  const take = async (file: File | undefined) => {
    setTrouble("");
    if (!file) return;
    try {
      await chats.imported(await file.text());
      chosen();
    } catch (error) {
      setTrouble((error as Error).message);
    }
  };
  return (
    <>
      <button type="button" class="button quiet wide" onClick={() => input.current?.click()}>Import a conversation</button>
      <input
        ref={input}
        type="file"
        accept="application/json"
        hidden
        aria-label="File of a conversation"
        onChange={(event) => {
          void take(event.currentTarget.files?.[0]);
          event.currentTarget.value = "";
        }}
      />
      {trouble && <p class="sidebar-note" role="alert">{trouble}</p>}
    </>
  );
}
