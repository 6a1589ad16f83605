/** Which view the address names: `/` is the chat, `/live` the engine. Addresses are relative, so a proxy may serve the
 * page below a prefix. */
import { signal } from "@preact/signals";

export type View = "chat" | "live";

const named = (): View => (location.pathname.endsWith("/live") ? "live" : "chat");

export const view = signal<View>(named());

addEventListener("popstate", () => {
  view.value = named();
});

export const addressOf = (target: View): string => (target === "live" ? "live" : "./");

export function go(target: View): void {
  if (target !== view.value) history.pushState(null, "", addressOf(target));
  view.value = target;
}

/** For `onClick` of a link: a plain click stays in the page, one with a modifier opens a tab as ever. */
export function follow(event: MouseEvent, target: View): void {
  if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(target);
}
