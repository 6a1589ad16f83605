import { Dialog } from "./Dialog.tsx";

interface Props {
  title: string;
  text: string;
  action: string;
  onConfirm: () => void;
  onClose: () => void;
}

/** Asks before something is gone for ever. */
export function Confirm({ title, text, action, onConfirm, onClose }: Props) {
  return (
    <Dialog id="confirm" title={title} onClose={onClose}>
      <p>{text}</p>
      <div class="dialog-actions">
        <button type="button" class="button" autofocus onClick={onClose}>Cancel</button>
        <button
          type="button"
          class="button danger"
          onClick={() => {
            onConfirm();
            onClose();
          }}
        >
          {action}
        </button>
      </div>
    </Dialog>
  );
}
