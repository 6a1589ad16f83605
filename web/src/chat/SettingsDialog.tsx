import { useState } from "preact/hooks";
import { apiKey, keyWanted, setKey } from "../shared/api.ts";
import { Confirm } from "../shared/Confirm.tsx";
import { Dialog } from "../shared/Dialog.tsx";
import { serverInfo } from "../shared/server_info.ts";
import { chooseTheme, theme } from "../shared/theme.ts";
import { THEMES } from "../shared/theme_names.ts";
import { removeAll } from "./answering.ts";
import * as chats from "./chats.ts";
import { settingsOpen } from "./panels.ts";
import { change, DEFAULTS, NUMBERS, settings, wrong, wrongJson, type NumberField, type Settings } from "./settings.ts";

/** System prompt, sampling, form of the answer, tools, and the page itself. Changes hold at once, for new answers. */
export function SettingsDialog() {
  return (
    <Dialog id="settings" title="Settings" shape="side" onClose={() => (settingsOpen.value = false)}>
      <SystemPrompt />
      <fieldset>
        <legend>Sampling</legend>
        <p class="hint">An empty field is left to the server.</p>
        <div class="numbers">
          {NUMBERS.map((field) => <NumberInput key={field.name} field={field} />)}
        </div>
        <Text name="stop" label="Stop texts" hint="One a line" rows={2} />
        {serverInfo.value?.facts?.chat?.reasoning && <Effort />}
      </fieldset>
      <AnswerForm />
      <fieldset>
        <legend>Tools</legend>
        <Text name="tools" label="Tools" hint="A JSON list, as in the API. You are asked for the results." rows={4} kind="list" code />
      </fieldset>
      <fieldset>
        <legend>Page</legend>
        <Check name="logprobs" label="Token probabilities" hint="Asks for the five likeliest tokens at each place" />
        <Check name="enterSends" label="Enter sends" hint="Off: Ctrl+Enter sends, Enter begins a new line" />
        <ThemeChoice />
        {(serverInfo.value?.authentication || apiKey.value) && <KeyLine />}
        {chats.conversations.value.length > 0 && <DeleteAll />}
      </fieldset>
      <Shortcuts />
      <div class="dialog-actions">
        <button type="button" class="button" onClick={() => change({ ...DEFAULTS })}>Reset all</button>
        <button type="button" class="button primary" onClick={() => (settingsOpen.value = false)}>Done</button>
      </div>
      <p class="hint">lightllm-mp {serverInfo.value?.version}</p>
    </Dialog>
  );
}

function SystemPrompt() {
  const { system } = chats.current.value;
  const asDefault = system === settings.value.system;
  return (
    <fieldset>
      <legend>System prompt</legend>
      <label class="field">
        <span>Of this conversation</span>
        <textarea
          id="system-prompt"
          rows={3}
          placeholder="You are a helpful assistant."
          value={system}
          onInput={(event) => void chats.changeSystem(event.currentTarget.value)}
        />
      </label>
      <label class="check">
        <input
          type="checkbox"
          checked={asDefault}
          disabled={asDefault}
          onChange={() => change({ system: chats.current.value.system })}
        />
        <span>Also for new conversations</span>
      </label>
    </fieldset>
  );
}

function NumberInput({ field }: { field: NumberField }) {
  const value = String(settings.value[field.name]);
  const problem = wrong(field, value);
  const hint = `${field.name}-hint`;
  return (
    <label class="field">
      <span>{field.label}</span>
      <input
        id={`setting-${field.name}`}
        type="number"
        inputMode={field.whole ? "numeric" : "decimal"}
        min={field.least}
        max={field.most}
        step={field.step}
        placeholder="default"
        value={value}
        aria-describedby={hint}
        aria-invalid={problem !== undefined}
        onInput={(event) => change({ [field.name]: event.currentTarget.value })}
      />
      <small id={hint} class={problem ? "problem" : "hint"}>{problem ?? field.hint}</small>
    </label>
  );
}

interface TextProps {
  name: "stop" | "schema" | "tools";
  label: string;
  hint: string;
  rows: number;
  kind?: "object" | "list";
  code?: boolean;
}

function Text({ name, label, hint, rows, kind, code }: TextProps) {
  const value = settings.value[name];
  const problem = kind && wrongJson(value, kind);
  return (
    <label class="field">
      <span>{label}</span>
      <textarea
        id={`setting-${name}`}
        class={code ? "code" : ""}
        rows={rows}
        spellcheck={false}
        value={value}
        aria-describedby={`${name}-hint`}
        aria-invalid={problem !== undefined}
        onInput={(event) => change({ [name]: event.currentTarget.value })}
      />
      <small id={`${name}-hint`} class={problem ? "problem" : "hint"}>{problem ?? hint}</small>
    </label>
  );
}

const EFFORTS = ["", "none", "minimal", "low", "medium", "high"];

function Effort() {
  return (
    <label class="field">
      <span>Reasoning effort</span>
      <select
        id="setting-reasoning_effort"
        value={settings.value.reasoning_effort}
        onChange={(event) => change({ reasoning_effort: event.currentTarget.value })}
      >
        {EFFORTS.map((one) => <option key={one} value={one}>{one || "default"}</option>)}
      </select>
    </label>
  );
}

const FORMS: Record<Settings["format"], string> = { text: "Text", json_object: "JSON", json_schema: "JSON of a schema" };

function AnswerForm() {
  const { format } = settings.value;
  return (
    <fieldset>
      <legend>Answer</legend>
      <label class="field">
        <span>Form</span>
        <select
          id="setting-format"
          value={format}
          onChange={(event) => change({ format: event.currentTarget.value as Settings["format"] })}
        >
          {Object.entries(FORMS).map(([value, label]) => <option key={value} value={value}>{label}</option>)}
        </select>
      </label>
      {format === "json_schema" && (
        <Text name="schema" label="JSON schema" hint="The answer always satisfies it." rows={6} kind="object" code />
      )}
    </fieldset>
  );
}

function Check({ name, label, hint }: { name: "logprobs" | "enterSends"; label: string; hint: string }) {
  return (
    <label class="check">
      <input
        id={`setting-${name}`}
        type="checkbox"
        checked={settings.value[name]}
        onChange={(event) => change({ [name]: event.currentTarget.checked })}
      />
      <span>
        {label}
        <small class="hint">{hint}</small>
      </span>
    </label>
  );
}

const THEME_NAMES = { system: "As the system", light: "Light", dark: "Dark" };

function ThemeChoice() {
  return (
    <label class="field">
      <span>Theme</span>
      <select id="setting-theme" value={theme.value} onChange={(event) => chooseTheme(event.currentTarget.value as typeof theme.value)}>
        {THEMES.map((one) => <option key={one} value={one}>{THEME_NAMES[one]}</option>)}
      </select>
    </label>
  );
}

function KeyLine() {
  const [removed, setRemoved] = useState(false);
  return (
    <div class="key-line">
      <span>{apiKey.value ? "An API key is kept for this tab." : removed ? "The key is forgotten." : "No API key."}</span>
      <button type="button" class="button" onClick={() => (keyWanted.value = "")}>{apiKey.value ? "Change" : "Enter"}</button>
      {apiKey.value && (
        <button
          type="button"
          class="button"
          onClick={() => {
            setKey("");
            setRemoved(true);
          }}
        >
          Forget
        </button>
      )}
    </div>
  );
}

function DeleteAll() {
  const [asking, ask] = useState(false);
  return (
    <>
      <button type="button" class="button" onClick={() => ask(true)}>Delete all conversations</button>
      {asking && (
        <Confirm
          title="Delete all conversations"
          text={`${chats.conversations.value.length} will be gone from this browser for ever.`}
          action="Delete all"
          onConfirm={() => void removeAll()}
          onClose={() => ask(false)}
        />
      )}
    </>
  );
}

const KEYS = [
  ["Enter", "send"],
  ["Shift+Enter", "new line"],
  ["Esc", "stop the answer"],
  ["Ctrl+Shift+O", "new chat"],
  ["Ctrl+K", "search conversations"],
] as const;

function Shortcuts() {
  return (
    <fieldset>
      <legend>Keys</legend>
      <dl class="shortcuts">
        {KEYS.map(([keys, what]) => (
          <div key={keys}>
            <dt><kbd>{keys}</kbd></dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
    </fieldset>
  );
}
