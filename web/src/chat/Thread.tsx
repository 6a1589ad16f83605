import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Guarded } from "../shared/Guarded.tsx";
import { Icon } from "../shared/icons.tsx";
import { IconButton } from "../shared/IconButton.tsx";
import { serverInfo } from "../shared/server_info.ts";
import { answering } from "./answering.ts";
import { AssistantMessage } from "./AssistantMessage.tsx";
import * as chats from "./chats.ts";
import { focusPrompt, prompt } from "./Composer.tsx";
import type { Message } from "./model.ts";
import { exportOpen } from "./panels.ts";
import { ToolMessage } from "./ToolCalls.tsx";
import { UserMessage } from "./UserMessage.tsx";

/** So near to the end, in pixels, a reader follows what comes. */
const NEAR = 60;
/** So many messages are shown at first, and more of them each time when the reader comes to the first one. */
const PAGE = 40;

/** The messages of the path that is shown. It stays at the end while the reader is there. */
export function Thread() {
  const scroller = useRef<HTMLDivElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const following = useRef(true);
  const [away, setAway] = useState(false);
  const path = chats.path.value;
  const { id } = chats.current.value;
  const earlier = useEarlier(id, path.length, scroller);
  const toEnd = () => {
    const element = scroller.current!;
    element.scrollTop = element.scrollHeight;
  };
  useEffect(() => {
    const observer = new ResizeObserver(() => following.current && toEnd());
    observer.observe(content.current!);
    observer.observe(scroller.current!);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    following.current = true;
    toEnd();
  }, [id, path.length]);
  const scrolled = () => {
    const { scrollHeight, scrollTop, clientHeight } = scroller.current!;
    following.current = scrollHeight - scrollTop - clientHeight < NEAR;
    setAway(!following.current);
    if (scrollTop < NEAR && !following.current) earlier.show();
  };
  return (
    <div class="thread-frame">
      <div ref={scroller} class="thread-scroller" onScroll={scrolled}>
        <div ref={content} class="thread-content">
          {path.length ? <Heading /> : <Welcome />}
          {earlier.first > 0 && (
            <button id="earlier" type="button" class="button quiet wide" onClick={earlier.show}>
              Show earlier messages ({earlier.first})
            </button>
          )}
          <ol id="thread" class="thread" aria-label="Messages" start={earlier.first + 1}>
            {path.slice(earlier.first).map((message, i) => (
              <li
                key={message.id}
                class={`message ${message.role}`}
                data-id={message.id}
                data-role={message.role}
                data-state={answering.value.has(message.id) ? "streaming" : message.state}
              >
                <Guarded what="This message">
                  <Item message={message} last={earlier.first + i === path.length - 1} />
                </Guarded>
              </li>
            ))}
          </ol>
        </div>
      </div>
      {away && (
        <IconButton
          id="to-end"
          class="to-end"
          icon="arrowDown"
          label="To the newest message"
          onClick={() => {
            following.current = true;
            toEnd();
          }}
        />
      )}
    </div>
  );
}

/** A long conversation is not laid out as a whole: its first messages come when the reader wants them, and what is on the
 * screen stays where it is. */
function useEarlier(conversation: string, length: number, scroller: { current: HTMLElement | null }) {
  const [{ of, first }, setFirst] = useState({ of: "", first: 0 });
  const fromEnd = useRef<number | undefined>(undefined);
  const newest = Math.max(0, length - PAGE);
  const shown = of === conversation ? Math.min(first, newest) : newest;
  useLayoutEffect(() => {
    if (of !== conversation || (first > newest && length)) setFirst({ of: conversation, first: newest });
  }, [conversation, length]);
  useLayoutEffect(() => {
    const element = scroller.current!;
    if (fromEnd.current !== undefined) element.scrollTop = element.scrollHeight - fromEnd.current;
    fromEnd.current = undefined;
  }, [shown]);
  const show = () => {
    const element = scroller.current!;
    if (shown === 0) return;
    fromEnd.current = element.scrollHeight - element.scrollTop;
    setFirst({ of: conversation, first: Math.max(0, shown - PAGE) });
  };
  return { first: shown, show };
}

function Item({ message, last }: { message: Message; last: boolean }) {
  const versions = chats.versions.value.get(message.parent) ?? [];
  if (message.role === "user") return <UserMessage message={message} versions={versions} />;
  if (message.role === "tool") return <ToolMessage message={message} />;
  return <AssistantMessage message={message} versions={versions} last={last} answering={answering.value.get(message.id)} />;
}

function Heading() {
  return (
    <div class="thread-head">
      <h1>{chats.current.value.title}</h1>
      <IconButton id="export-button" icon="export" label="Export" onClick={() => (exportOpen.value = true)} />
    </div>
  );
}

const IDEAS = ["Explain how rainbows form, in two paragraphs.", "Write a Python function that finds prime numbers.", "What is a good name for a grey cat?"];

function Welcome() {
  const sees = serverInfo.value?.takes_images;
  if (serverInfo.value?.facts?.pooled)
    return (
      <div class="welcome">
        <h1>This model does not chat</h1>
        <p>It answers with embeddings or scores: POST /v1/embeddings, /v1/rerank or /v1/score.</p>
      </div>
    );
  return (
    <div class="welcome">
      <h1>What can I help with?</h1>
      <p>{sees ? "Write a message, or drop a picture here." : "Write a message below."}</p>
      <ul class="ideas">
        {IDEAS.map((idea) => (
          <li key={idea}>
            <button
              type="button"
              onClick={() => {
                prompt.value = idea;
                focusPrompt();
              }}
            >
              {idea}
              <Icon name="chevron" size={16} />
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}
