import { useEffect, useState } from "preact/hooks";
import { copyText, download } from "../shared/clipboard.ts";
import { Dialog } from "../shared/Dialog.tsx";
import { serverInfo } from "../shared/server_info.ts";
import { bodyShown } from "./answering.ts";
import * as chats from "./chats.ts";
import { curlOf, pythonOf } from "./exports.ts";
import { exportOpen } from "./panels.ts";

const KINDS = {
  json: { label: "JSON", end: "json", type: "application/json", hint: "The whole conversation, with all versions; this page can import it." },
  curl: { label: "curl", end: "sh", type: "text/x-shellscript", hint: "The request that asked for the last answer." },
  python: { label: "Python", end: "py", type: "text/x-python", hint: "The same with the openai package." },
} as const;
type Kind = keyof typeof KINDS;

/** The longest text that is shown; what is copied and saved is whole. */
const SHOWN = 20_000;

/** The conversation as a file, and its last request as a program. */
export function ExportDialog() {
  const [kind, setKind] = useState<Kind>("json");
  const [text, setText] = useState("");
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    let late = false;
    setCopied(false);
    void textOf(kind).then((found) => late || setText(found));
    return () => {
      late = true;
    };
  }, [kind]);
  const { label, end, type, hint } = KINDS[kind];
  const name = `${chats.current.value.title.replace(/[^\w -]+/g, "").trim() || "chat"}.${end}`;
  return (
    <Dialog id="export" title="Export" onClose={() => (exportOpen.value = false)}>
      <div class="segments" role="group" aria-label="Form">
        {(Object.keys(KINDS) as Kind[]).map((one) => (
          <button key={one} type="button" aria-pressed={one === kind} onClick={() => setKind(one)}>{KINDS[one].label}</button>
        ))}
      </div>
      <p class="hint">{hint}</p>
      <pre id="export-text" class="export-text" tabIndex={0} role="region" aria-label={label}>
        {text.length > SHOWN ? `${text.slice(0, SHOWN)}\n…` : text}
      </pre>
      <div class="dialog-actions">
        <button type="button" class="button" onClick={() => download(name, text, type)}>Save as a file</button>
        <button type="button" class="button primary" onClick={() => void copyText(text).then(() => setCopied(true))}>
          {copied ? "Copied" : "Copy"}
        </button>
      </div>
    </Dialog>
  );
}

async function textOf(kind: Kind): Promise<string> {
  if (kind === "json") return JSON.stringify(await chats.exported(chats.current.value.id), null, 2);
  const base = new URL(".", location.href).href.replace(/\/$/, "");
  const write = kind === "curl" ? curlOf : pythonOf;
  return write(bodyShown(), base, serverInfo.value?.authentication ?? false);
}
