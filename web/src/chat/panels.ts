/** Which panels of the chat are open. */
import { signal } from "@preact/signals";

/** Below this width the conversations lie over the chat. */
const NARROW = "(max-width: 820px)";

export const narrow = signal(matchMedia(NARROW).matches);
export const sidebarOpen = signal(!narrow.value);
export const settingsOpen = signal(false);
export const exportOpen = signal(false);

matchMedia(NARROW).addEventListener("change", ({ matches }) => {
  narrow.value = matches;
  sidebarOpen.value = !matches;
});
