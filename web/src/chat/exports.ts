/** A request in other languages. */
import type { ChatBody } from "./request_body.ts";

/** Shell quotes: a single quote ends them, comes by itself, and begins them again. */
const quoted = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`;

export function curlOf(body: ChatBody, base: string, needsKey: boolean): string {
  const lines = [`curl ${quoted(`${base}/v1/chat/completions`)}`, `  -H 'Content-Type: application/json'`];
  if (needsKey) lines.push(`  -H "Authorization: Bearer $API_KEY"`);
  lines.push(`  -d ${quoted(JSON.stringify(body, null, 2))}`);
  return `${lines.join(" \\\n")}\n`;
}

/** Fields that the openai package knows as arguments; others go into extra_body. */
const KNOWN = new Set([
  "model", "messages", "temperature", "top_p", "max_tokens", "seed", "stop", "presence_penalty", "frequency_penalty",
  "reasoning_effort", "response_format", "tools",
]);

export function pythonOf(body: ChatBody, base: string, needsKey: boolean): string {
  const known = Object.entries(body).filter(([name]) => KNOWN.has(name));
  const others = Object.entries(body).filter(([name]) => !KNOWN.has(name));
  if (others.length) known.push(["extra_body", Object.fromEntries(others)]);
  const key = needsKey ? `os.environ["API_KEY"]` : `"none"`;
  return [
    ...(needsKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${python(`${base}/v1`)}, api_key=${key})`,
    "answer = client.chat.completions.create(",
    ...known.map(([name, value]) => `    ${name}=${python(value, 1)},`),
    ")",
    "print(answer.choices[0].message.content)",
    "",
  ].join("\n");
}

/** A value as Python writes it. */
export function python(value: unknown, depth = 0): string {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "string") return JSON.stringify(value).replace(/[\u007f\u2028\u2029]/g, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
  if (typeof value !== "object") return String(value);
  const list = Array.isArray(value);
  const items = list
    ? value.map((one) => python(one, depth + 1))
    : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one, depth + 1)}`);
  const [open, close] = list ? "[]" : "{}";
  if (!items.length) return `${open}${close}`;
  const line = `${open}${items.join(", ")}${close}`;
  if (line.length <= 80 && !line.includes("\n")) return line;
  const indent = "    ".repeat(depth + 1);
  return `${open}\n${items.map((one) => `${indent}${one},\n`).join("")}${"    ".repeat(depth)}${close}`;
}

