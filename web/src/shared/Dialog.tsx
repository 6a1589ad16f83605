import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { IconButton } from "./IconButton.tsx";

interface Props {
  id: string;
  title: string;
  /** "side": a sheet at the right edge. */
  shape?: "middle" | "side";
  onClose: () => void;
  children: ComponentChildren;
}

/** A modal dialog of the browser's own: it keeps the focus inside, closes on Escape, and gives the focus back. */
export function Dialog({ id, title, shape = "middle", onClose, children }: Props) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const before = document.activeElement;
    dialog.current?.showModal();
    return () => {
      if (before instanceof HTMLElement && before.isConnected) before.focus();
    };
  }, []);
  const outside = (event: MouseEvent) => {
    if (event.target === dialog.current) onClose();
  };
  return (
    <dialog ref={dialog} id={id} class={`dialog ${shape}`} aria-labelledby={`${id}-title`} onClose={onClose} onMouseDown={outside}>
      <div class="dialog-body">
        <header class="dialog-head">
          <h2 id={`${id}-title`}>{title}</h2>
          <IconButton icon="close" label="Close" onClick={onClose} />
        </header>
        {children}
      </div>
    </dialog>
  );
}
