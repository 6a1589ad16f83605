/** Settings of this browser for new answers. An empty field is left to the server. */
import { signal } from "@preact/signals";

const KEY = "lightllm-mp.settings";

export interface Settings {
  /** System prompt of new conversations. */
  system: string;
  temperature: string;
  top_p: string;
  top_k: string;
  min_p: string;
  max_tokens: string;
  repetition_penalty: string;
  presence_penalty: string;
  frequency_penalty: string;
  seed: string;
  /** One a line. */
  stop: string;
  /** "": as the model does by default */
  reasoning_effort: string;
  format: "text" | "json_object" | "json_schema";
  schema: string;
  /** JSON: a list of tools, as in `tools` of the API. */
  tools: string;
  logprobs: boolean;
  enterSends: boolean;
}

export const DEFAULTS: Readonly<Settings> = {
  system: "",
  // The API's own default is 1, at which small models talk nonsense.
  temperature: "0.7",
  top_p: "",
  top_k: "",
  min_p: "",
  max_tokens: "",
  repetition_penalty: "",
  presence_penalty: "",
  frequency_penalty: "",
  seed: "",
  stop: "",
  reasoning_effort: "",
  format: "text",
  schema: "",
  tools: "",
  logprobs: false,
  enterSends: true,
};

export interface NumberField {
  name: keyof Settings;
  label: string;
  hint: string;
  least: number;
  most: number;
  step: number | "any";
  whole?: boolean;
}

export const NUMBERS: readonly NumberField[] = [
  { name: "temperature", label: "Temperature", hint: "0: always the likeliest token", least: 0, most: 2, step: 0.05 },
  { name: "top_p", label: "Top P", hint: "Likeliest tokens of this share", least: 0, most: 1, step: 0.01 },
  { name: "top_k", label: "Top K", hint: "So many likeliest tokens", least: 1, most: 1e6, step: 1, whole: true },
  { name: "min_p", label: "Min P", hint: "Least share of the likeliest", least: 0, most: 1, step: 0.01 },
  { name: "max_tokens", label: "Longest answer", hint: "In tokens", least: 1, most: 1e7, step: 1, whole: true },
  { name: "seed", label: "Seed", hint: "The same answer again", least: 0, most: 2 ** 53 - 1, step: 1, whole: true },
  { name: "repetition_penalty", label: "Repetition penalty", hint: "1: none", least: 0.01, most: 10, step: 0.05 },
  { name: "presence_penalty", label: "Presence penalty", hint: "0: none", least: -2, most: 2, step: 0.1 },
  { name: "frequency_penalty", label: "Frequency penalty", hint: "0: none", least: -2, most: 2, step: 0.1 },
];

export const settings = signal<Settings>(read());

function read(): Settings {
  try {
    return checked(JSON.parse(localStorage.getItem(KEY) ?? "{}"));
  } catch {
    return { ...DEFAULTS };
  }
}

/** Fields of the right type; what is missing or wrong is as by default. */
export function checked(found: Record<string, unknown>): Settings {
  const entries = Object.entries(DEFAULTS).map(([name, value]) => [name, typeof found[name] === typeof value ? found[name] : value]);
  return Object.fromEntries(entries) as unknown as Settings;
}

export function change(changed: Partial<Settings>): void {
  settings.value = { ...settings.value, ...changed };
  try {
    localStorage.setItem(KEY, JSON.stringify(settings.value));
  } catch {
    // they hold for this page, then
  }
}

/** What is wrong with a field's value, in words; undefined if nothing is. */
export function wrong(field: NumberField, value: string): string | undefined {
  if (!value.trim()) return undefined;
  const number = Number(value);
  if (!Number.isFinite(number)) return "This is not a number.";
  if (field.whole && !Number.isInteger(number)) return "This has to be a whole number.";
  if (number < field.least) return `This has to be at least ${field.least}.`;
  return number > field.most ? `This can be at most ${field.most}.` : undefined;
}

/** What is wrong with JSON that has to be an object or a list; undefined if nothing is, or there is none. */
export function wrongJson(text: string, kind: "object" | "list"): string | undefined {
  if (!text.trim()) return undefined;
  try {
    const value: unknown = JSON.parse(text);
    const fits = kind === "list" ? Array.isArray(value) : typeof value === "object" && value !== null && !Array.isArray(value);
    return fits ? undefined : `This has to be a JSON ${kind}.`;
  } catch (error) {
    return `This is not JSON: ${(error as Error).message}`;
  }
}
