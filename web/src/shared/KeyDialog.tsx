import { useState } from "preact/hooks";
import { apiKey, keyWanted, setKey } from "./api.ts";
import { Dialog } from "./Dialog.tsx";
import { loadServerInfo } from "./server_info.ts";

/** Asks for the API key when the server wants one. */
export function KeyDialog() {
  const [key, change] = useState(apiKey.value);
  if (keyWanted.value === undefined) return null;
  const close = () => (keyWanted.value = undefined);
  const submit = (event: Event) => {
    event.preventDefault();
    setKey(key);
    void loadServerInfo().catch(() => {}); // a wrong key asks again
  };
  return (
    <Dialog id="key-dialog" title="API key" onClose={close}>
      <form class="key-form" onSubmit={submit}>
        <p id="key-hint">{keyWanted.value} It is kept for this tab only.</p>
        <label class="field">
          <span>Key</span>
          <input
            id="api-key"
            type="password"
            autocomplete="off"
            spellcheck={false}
            aria-describedby="key-hint"
            autofocus
            value={key}
            onInput={(event) => change(event.currentTarget.value)}
          />
        </label>
        <div class="dialog-actions">
          <button type="button" class="button" onClick={close}>Cancel</button>
          <button type="submit" class="button primary">Use this key</button>
        </div>
      </form>
    </Dialog>
  );
}
