/** What screen readers are told, politely: App shows it in a live region that nobody sees. */
import { signal } from "@preact/signals";

export const announcement = signal("");

export function announce(text: string): void {
  announcement.value = "";
  setTimeout(() => (announcement.value = text), 50); // the same text again is a change, too
}
