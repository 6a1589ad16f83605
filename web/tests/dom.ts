/** A document for what needs one. Import it before anything else. */
import { JSDOM } from "jsdom";

const { window } = new JSDOM("<!doctype html><body></body>", { url: "http://127.0.0.1:8000/", pretendToBeVisual: true });
for (const name of [
  "window", "document", "Node", "Element", "HTMLElement", "DocumentFragment", "NodeFilter", "DOMParser", "location", "history", "navigator",
  "localStorage", "sessionStorage", "addEventListener", "removeEventListener", "requestAnimationFrame", "cancelAnimationFrame", "Event",
  "KeyboardEvent", "MouseEvent",
])
  Object.defineProperty(globalThis, name, { value: name === "window" ? window : window[name], configurable: true, writable: true });

export { window };

/** Waits until `ready`; highlighting and formulas are fetched when they are first needed. */
export async function until(ready: () => boolean): Promise<void> {
  const end = Date.now() + 10_000;
  while (!ready()) {
    if (Date.now() > end) throw new Error("it did not come");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
