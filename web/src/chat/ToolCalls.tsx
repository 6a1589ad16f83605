import { useState } from "preact/hooks";
import { Icon } from "../shared/icons.tsx";
import { answerCalls } from "./answering.ts";
import type { Message, ToolCall } from "./model.ts";

/** The calls of an answer: names and arguments. */
export function ToolCalls({ calls }: { calls: readonly ToolCall[] }) {
  if (!calls.length) return null;
  return (
    <ul class="calls" aria-label="Tool calls">
      {calls.map((call, i) => (
        <li key={i} class="call">
          <p class="call-name">
            <Icon name="tool" size={16} />
            <code>{call.name}</code>
          </p>
          {call.arguments && <pre tabIndex={0} role="region" aria-label={`Arguments of ${call.name}`}>{laidOut(call.arguments)}</pre>}
        </li>
      ))}
    </ul>
  );
}

function laidOut(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // it still grows
  }
}

/** Fields for what the tools answered: this page runs no tools. */
export function CallResults({ calls }: { calls: readonly ToolCall[] }) {
  const [results, change] = useState<ReadonlyMap<string, string>>(new Map());
  if (!calls.length) return null;
  return (
    <form
      class="call-results"
      onSubmit={(event) => {
        event.preventDefault();
        void answerCalls(new Map(calls.map(({ id }) => [id, results.get(id) ?? ""])));
      }}
    >
      {calls.map(({ id, name }) => (
        <label key={id} class="field">
          <span>Result of {name}</span>
          <textarea
            rows={2}
            value={results.get(id) ?? ""}
            onInput={(event) => change(new Map(results).set(id, event.currentTarget.value))}
          />
        </label>
      ))}
      <button type="submit" class="button primary">Send results</button>
    </form>
  );
}

/** A result, as it was sent. */
export function ToolMessage({ message }: { message: Message }) {
  return (
    <article aria-label="Tool result" class="call">
      <h2 class="visually-hidden">Tool result</h2>
      <p class="call-name">
        <Icon name="tool" size={16} />
        Result
      </p>
      <pre tabIndex={0} role="region" aria-label="Tool result">{laidOut(message.text)}</pre>
    </article>
  );
}
