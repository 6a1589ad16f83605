import { Markdown } from "./Markdown.tsx";
import type { Message } from "./model.ts";

/** What the model thought, folded. `growing`: it still thinks. */
export function Reasoning({ message, growing }: { message: Message; growing: boolean }) {
  if (!message.reasoning) return null;
  const seconds = (message.reasoningMs ?? 0) / 1000;
  return (
    <details class="reasoning">
      <summary>{growing ? "Thinking…" : seconds >= 1 ? `Thought for ${Math.round(seconds)} s` : "Thoughts"}</summary>
      <div class="reasoning-text">
        <Markdown text={message.reasoning} growing={growing} />
      </div>
    </details>
  );
}
