/** Blocks of Markdown become DOM. Highlighting and formulas are fetched when there is something for them. */
import { md, type References } from "./parser.ts";
import { markdownMarkup, mathMarkup } from "./sanitize.ts";

export { BlockSplitter } from "./blocks.ts";

/** Longer code is shown without colours while it grows, and at most so much of it ever. */
const GROWING_CODE = 6_000;
const MOST_CODE = 100_000;

type Highlight = typeof import("./highlight.ts");
type Formulas = typeof import("./formulas.ts");
let highlight: Highlight | undefined;
let formulas: Formulas | undefined;

/** Shows a block in `element`. `growing`: it will be shown again soon, with more. */
export function renderBlock(element: Element, text: string, references: References, growing: boolean): void {
  const fragment = markdownMarkup(md.render(text, { references }));
  for (const pre of fragment.querySelectorAll("pre")) decorateCode(pre, growing);
  for (const table of fragment.querySelectorAll("table")) wrapTable(table);
  for (const span of fragment.querySelectorAll(".math-inline, .math-display")) showFormula(span);
  element.replaceChildren(fragment);
}

/** A bar with the language and a button to copy, over code that the keyboard can scroll. */
function decorateCode(pre: HTMLPreElement, growing: boolean): void {
  const code = pre.querySelector("code");
  if (!code) return;
  const language = /language-(\S+)/.exec(code.className)?.[1] ?? "";
  const figure = made("div", "code-block");
  const bar = made("div", "code-bar");
  const name = made("span", "code-language");
  name.textContent = language || "text";
  const copy = made("button", "code-copy");
  copy.setAttribute("type", "button");
  copy.textContent = "Copy";
  copy.setAttribute("aria-label", "Copy code");
  bar.append(name, copy);
  pre.replaceWith(figure);
  figure.append(bar, pre);
  pre.tabIndex = 0;
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
  if (language) colour(code, language, growing ? GROWING_CODE : MOST_CODE);
}

function colour(code: Element, language: string, most: number): void {
  const text = code.textContent ?? "";
  if (text.length > most) return;
  if (highlight) {
    const html = highlight.highlighted(text, language);
    if (html !== undefined) code.replaceChildren(markdownMarkup(html));
  } else {
    void import("./highlight.ts").then((module) => {
      highlight = module;
      if (code.textContent === text) colour(code, language, most);
    });
  }
}

function wrapTable(table: HTMLTableElement): void {
  const frame = made("div", "table-frame");
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", "Table");
  table.replaceWith(frame);
  frame.append(table);
}

function showFormula(span: Element): void {
  const tex = span.textContent ?? "";
  if (formulas) {
    const mathml = formulas.mathmlOf(tex, span.classList.contains("math-display"));
    if (mathml === undefined) span.classList.add("math-wrong");
    else span.replaceChildren(mathMarkup(mathml));
    span.setAttribute("title", tex);
  } else {
    void import("./formulas.ts").then((module) => {
      formulas = module;
      if (span.textContent === tex) showFormula(span);
    });
  }
}

function made<K extends keyof HTMLElementTagNameMap>(tag: K, name: string): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  element.className = name;
  return element;
}
