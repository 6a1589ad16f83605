import type { ComponentChildren } from "preact";
import { IconButton } from "../shared/IconButton.tsx";
import * as chats from "./chats.ts";
import type { Message } from "./model.ts";

/** What can be done with a message. */
export function MessageBar({ children }: { children: ComponentChildren }) {
  return <div class="message-bar" role="group" aria-label="Actions">{children}</div>;
}

/** Goes through the versions of a message. */
export function Versions({ message, versions }: { message: Message; versions: readonly string[] }) {
  const index = versions.indexOf(message.id);
  if (versions.length < 2) return null;
  const show = (next: number) => void chats.chooseVersion(versions[next]!);
  return (
    <span class="versions" role="group" aria-label="Versions">
      <IconButton icon="left" size={16} label="Previous version" disabled={index === 0} onClick={() => show(index - 1)} />
      <span class="version-number">{index + 1}/{versions.length}</span>
      <IconButton icon="right" size={16} label="Next version" disabled={index === versions.length - 1} onClick={() => show(index + 1)} />
    </span>
  );
}
