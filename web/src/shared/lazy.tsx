import type { ComponentType, JSX } from "preact";
import { useEffect, useState } from "preact/hooks";

/** A component whose code is fetched when it is first shown. */
export function lazy(load: () => Promise<{ default: ComponentType }>): () => JSX.Element {
  let found: ComponentType | undefined;
  return function Lazy() {
    const [Content, setContent] = useState<ComponentType | undefined>(() => found);
    const [failure, setFailure] = useState("");
    useEffect(() => {
      if (Content) return;
      load().then(
        (module) => setContent(() => (found = module.default)),
        () => setFailure("This part of the page could not be loaded. Reload the page."),
      );
    }, []);
    if (failure) return <p class="notice" role="alert">{failure}</p>;
    return Content ? <Content /> : <p class="notice" role="status">Loading…</p>;
  };
}
