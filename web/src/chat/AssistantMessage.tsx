import { useEffect, useState } from "preact/hooks";
import { CopyButton } from "../shared/CopyButton.tsx";
import { IconButton } from "../shared/IconButton.tsx";
import { memo } from "../shared/memo.tsx";
import { editAnswer, goOn, regenerate, type Answering } from "./answering.ts";
import * as chats from "./chats.ts";
import { focusPrompt } from "./Composer.tsx";
import { EditBox, focusAgain } from "./EditBox.tsx";
import { FailureNote } from "./FailureNote.tsx";
import { Markdown } from "./Markdown.tsx";
import { MessageBar, Versions } from "./MessageBar.tsx";
import { openCalls, type Message } from "./model.ts";
import { Reasoning } from "./Reasoning.tsx";
import { StatsLine } from "./StatsLine.tsx";
import type { Wait } from "./stream.ts";
import { Tokens } from "./Tokens.tsx";
import { CallResults, ToolCalls } from "./ToolCalls.tsx";

interface Props {
  message: Message;
  versions: readonly string[];
  /** It is the last one of the path. */
  last: boolean;
  answering: Answering | undefined;
}

export const AssistantMessage = memo(({ message, versions, last, answering }: Props) => {
  const [editing, setEditing] = useState(false);
  const [tokens, showTokens] = useState(false);
  return (
    <article aria-label="Assistant" aria-busy={answering !== undefined}>
      <h2 class="visually-hidden">Assistant</h2>
      {editing ? (
        <EditBox
          text={message.text}
          label="The answer"
          action="Save"
          onCancel={() => {
            setEditing(false);
            focusAgain(message.id, "Edit answer");
          }}
          onSave={(text) => {
            setEditing(false);
            then(editAnswer(message, text));
          }}
        />
      ) : (
        <Said message={message} answering={answering} tokens={tokens} />
      )}
      {answering && <Progress answering={answering} />}
      {!answering && !editing && (
        <>
          {last && message.state === "done" && <CallResults calls={openCalls(chats.path.value)} />}
          {noteOf(message) && <p class="message-note">{noteOf(message)}</p>}
          {message.error && <FailureNote message={message} error={message.error} last={last} />}
          <Bar message={message} versions={versions} last={last} tokens={tokens} showTokens={showTokens} onEdit={() => setEditing(true)} />
        </>
      )}
    </article>
  );
});

interface SaidProps {
  message: Message;
  answering: Answering | undefined;
  /** Show token by token. */
  tokens: boolean;
}

/** What the model said. It alone is rendered again as tokens come, and stays when they end. */
function Said({ message: kept, answering, tokens }: SaidProps) {
  const message = answering?.message.value ?? kept;
  const growing = answering !== undefined;
  const silent = !message.text && !message.calls?.length;
  return (
    <>
      <Reasoning message={message} growing={growing && silent} />
      {tokens && !growing && message.tokens ? <Tokens tokens={message.tokens} /> : <Text message={message} growing={growing} />}
      <ToolCalls calls={message.calls ?? []} />
      {answering?.wait.value ? (
        <Waiting wait={answering.wait.value} />
      ) : (
        growing && silent && !message.reasoning && <p class="thinking" aria-hidden="true"><i /><i /><i /></p>
      )}
    </>
  );
}

/** The button that began it goes away, so the focus goes on to where the next message is written. */
function then(_work: Promise<void>): void {
  focusPrompt();
}

/** It takes the place of the buttons, so that nothing moves when they come. */
function Progress({ answering }: { answering: Answering }) {
  return (
    <div class="message-bar">
      <StatsLine stats={answering.progress.value} />
    </div>
  );
}

function noteOf({ state, finish }: Message): string | undefined {
  if (state === "stopped") return "Stopped.";
  if (state === "streaming") return "Another tab receives this answer.";
  return state === "done" && finish === "length" ? "The answer has reached its longest length." : undefined;
}

interface BarProps {
  message: Message;
  versions: readonly string[];
  last: boolean;
  tokens: boolean;
  showTokens: (show: boolean) => void;
  onEdit: () => void;
}

function Bar({ message, versions, last, tokens, showTokens, onEdit }: BarProps) {
  const unfinished = message.state === "stopped" || message.state === "failed" || message.finish === "length";
  return (
    <MessageBar>
      <Versions message={message} versions={versions} />
      {message.text && <CopyButton label="Copy answer" text={() => message.text} />}
      <IconButton icon="retry" size={17} label="Regenerate" onClick={() => then(regenerate(message))} />
      {last && unfinished && message.text && (
        <IconButton icon="play" size={17} label="Continue" onClick={() => then(goOn(message))} />
      )}
      {message.text && <IconButton icon="edit" size={17} label="Edit answer" onClick={onEdit} />}
      {message.tokens && (
        <IconButton
          icon="tokens"
          size={17}
          label="Token probabilities"
          aria-pressed={tokens}
          onClick={() => showTokens(!tokens)}
        />
      )}
      <IconButton icon="trash" size={17} label="Delete from here" onClick={() => then(chats.removeMessage(message.id))} />
      <StatsLine stats={message.stats} />
    </MessageBar>
  );
}

/** Markdown; JSON that was asked for is laid out as such. */
function Text({ message, growing }: { message: Message; growing: boolean }) {
  if (!message.text) return null;
  return <Markdown text={message.json ? asJson(message.text, growing) : message.text} growing={growing} />;
}

function asJson(text: string, growing: boolean): string {
  try {
    const shown = growing ? text : JSON.stringify(JSON.parse(text), null, 2);
    return `\`\`\`\`\`json\n${shown}\n\`\`\`\`\``;
  } catch {
    return text; // cut off, or a call besides
  }
}

function Waiting({ wait }: { wait: Wait }) {
  const seconds = useCountdown(wait.until);
  return (
    <p class={`message-note waiting ${wait.reason}`} role="status">
      {wait.message}{" "}
      {wait.reason === "lost" ? "Coming back…" : seconds > 0 ? `Trying again in ${seconds} s.` : "Trying again…"}
      <button type="button" class="link" onClick={wait.now}>Try now</button>
    </p>
  );
}

function useCountdown(until: number): number {
  const [now, tick] = useState(Date.now());
  useEffect(() => {
    tick(Date.now());
    const timer = setInterval(() => tick(Date.now()), 500);
    return () => clearInterval(timer);
  }, [until]);
  return Math.ceil((until - now) / 1000);
}
