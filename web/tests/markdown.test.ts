import { until } from "./dom.ts";
import assert from "node:assert/strict";
import { test } from "node:test";
import { BlockSplitter, renderBlock } from "../src/chat/markdown/render.ts";

function shown(text: string): HTMLElement {
  const element = document.createElement("div");
  renderBlock(element, text, {}, false);
  return element;
}

test("headings stand below those of the page", () => {
  assert.equal(shown("# one\n\n## two\n\n###### six").querySelectorAll("h3, h4, h6").length, 3);
});

test("tables have their alignment and can be scrolled", () => {
  const element = shown("| a | b |\n|:-:|--:|\n| 1 | 2 |");
  assert.deepEqual([...element.querySelectorAll("td")].map((one) => one.className), ["align-center", "align-right"]);
  const frame = element.querySelector<HTMLElement>(".table-frame")!;
  assert.equal(frame.tabIndex, 0);
  assert.equal(frame.getAttribute("aria-label"), "Table");
});

test("code has its language, a button and colours", async () => {
  const first = shown("```js\nlet a = 1;\n```");
  await until(() => first.querySelector(".hljs-keyword") !== null);
  const element = shown("```js\nlet a = 1;\n```");
  assert.equal(element.querySelector(".code-language")!.textContent, "js");
  assert.equal(element.querySelector("button.code-copy")!.getAttribute("aria-label"), "Copy code");
  assert.equal(element.querySelector(".hljs-keyword")!.textContent, "let");
  assert.equal(shown("```nothing-known\nx\n```").querySelector("code")!.textContent, "x\n");
});

test("formulas, and prices that are none", async () => {
  const formulas = "$x^2$ and \\(y_1\\) and $$z$$\n\n$$\n\\frac{a}{b}\n$$\n\n\\[\nc\n\\]\n";
  const first = shown(formulas);
  await until(() => first.querySelectorAll("math").length === 5);
  const element = shown(formulas);
  assert.equal(element.querySelectorAll("math").length, 5);
  assert.equal(element.querySelectorAll("annotation").length, 0);
  assert.equal(element.querySelectorAll("mfrac").length, 1);
  assert.equal(element.querySelector(".math-inline")!.textContent, "x2");
  assert.equal(shown("$5 and $10, or $ 3 $").textContent!.trim(), "$5 and $10, or $ 3 $");
  assert.equal(shown("`$x$` \\$y\\$").querySelectorAll(".math-inline").length, 0);
  const wrong = shown("$\\frac{$");
  assert.equal(wrong.querySelector(".math-wrong")!.textContent, "\\frac{");
});

const TEXT = `# Title

A paragraph
over two lines with a [link][1].

- one
- two

  more of two

1. a
2. b

\`\`\`python
def f():

    return 1
\`\`\`

| a | b |
|---|---|
| 1 | 2 |

$$
x
y
$$

$$

no formula

$$

> quote
lazy

[1]: https://a.example

    indented code

last`;

test("a growing text is cut where blocks end, and the pieces show the whole", () => {
  for (const step of [1, 7, 50]) {
    const splitter = new BlockSplitter();
    let blocks: readonly string[] = [];
    for (let length = 0; length < TEXT.length + step; length += step) {
      blocks = splitter.split(TEXT.slice(0, length));
      assert.equal(blocks.join(""), TEXT.slice(0, length));
    }
    splitter.split(TEXT, true);
    assert.ok(blocks.length > 6);
    const whole = document.createElement("div");
    renderBlock(whole, TEXT, {}, false);
    const pieces = blocks.map((block) => {
      const element = document.createElement("div");
      renderBlock(element, block, splitter.references, false);
      return element.innerHTML;
    });
    assert.equal(pieces.join("").replace(/\s+/g, " "), whole.innerHTML.replace(/\s+/g, " "));
  }
});

test("what is finished is not split again", () => {
  const splitter = new BlockSplitter();
  const many = Array.from({ length: 2000 }, (_, i) => `paragraph ${i}\n\n`).join("");
  let text = "";
  const begin = performance.now();
  for (const part of many.match(/[^]{1,40}/g)!) splitter.split((text += part));
  assert.ok(performance.now() - begin < 2000);
  assert.deepEqual(splitter.split("another"), ["another"]);
});
