import { useLayoutEffect, useRef, useState } from "preact/hooks";

interface Props {
  text: string;
  label: string;
  action: string;
  onSave: (text: string) => void;
  onCancel: () => void;
}

/** A message's text in the making of a new version. */
export function EditBox({ text, label, action, onSave, onCancel }: Props) {
  const [changed, change] = useState(text);
  const area = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => {
    const element = area.current!;
    element.focus();
    element.setSelectionRange(text.length, text.length);
  }, []);
  useLayoutEffect(() => {
    const element = area.current!;
    element.style.height = "auto";
    element.style.height = `${element.scrollHeight + 2}px`;
  }, [changed]);
  const save = () => changed.trim() && onSave(changed);
  return (
    <form
      class="edit-box"
      onSubmit={(event) => {
        event.preventDefault();
        save();
      }}
    >
      <textarea
        ref={area}
        aria-label={label}
        value={changed}
        onInput={(event) => change(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Escape") {
            event.preventDefault();
            onCancel();
          } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
            event.preventDefault();
            save();
          }
        }}
      />
      <div class="dialog-actions">
        <button type="button" class="button" onClick={onCancel}>Cancel</button>
        <button type="submit" class="button primary" disabled={!changed.trim()}>{action}</button>
      </div>
    </form>
  );
}

/** Gives the focus back to the button that opened the box. */
export function focusAgain(message: string, label: string): void {
  requestAnimationFrame(() => document.querySelector<HTMLElement>(`[data-id="${message}"] [aria-label="${label}"]`)?.focus());
}
