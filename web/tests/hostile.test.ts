/** A model's output never becomes markup, whatever it is. */
import { until } from "./dom.ts";
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { BlockSplitter, renderBlock } from "../src/chat/markdown/render.ts";

function shown(text: string): HTMLElement {
  const element = document.createElement("div");
  renderBlock(element, text, {}, false);
  return element;
}

before(async () => {
  const first = shown("$x$\n\n```js\nlet a;\n```");
  await until(() => first.querySelector("math") !== null && first.querySelector(".hljs-keyword") !== null);
});

const ELEMENTS = new Set(
  "p br hr h3 h4 h5 h6 ul ol li blockquote pre code em strong s a table thead tbody tr th td span div button".split(" "),
);
const MATH = new Set(
  "math semantics mrow mi mo mn msup msub msubsup mfrac msqrt mroot mtext mspace mstyle mtable mtr mtd mover munder munderover mpadded mphantom merror".split(" "),
);

function assertHarmless(element: Element, text: string): void {
  for (const one of element.querySelectorAll("*")) {
    const name = one.nodeName.toLowerCase();
    assert.ok(ELEMENTS.has(name) || MATH.has(name), `${name} of ${text}`);
    for (const { name: attribute, value } of one.attributes) {
      assert.ok(!/^on|^style$|^src|^srcdoc$|^xlink|^formaction$|^action$|^id$|^name$/i.test(attribute), `${attribute} of ${text}`);
      if (attribute === "href") assert.match(value, /^(https?|mailto):/i, text);
      else assert.doesNotMatch(value.replace(/^(title|aria-label)$/, ""), /^\s*javascript:/i, text);
    }
    if (name === "a" && one.hasAttribute("href")) {
      assert.match(one.getAttribute("rel")!, /noopener/);
      assert.equal(one.getAttribute("target"), "_blank");
    }
  }
}

const HOSTILE = [
  "<script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  "<svg onload=alert(1)>",
  "<svg><script>alert(1)</script></svg>",
  "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
  "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
  "<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
  "<style>body{display:none}</style>",
  "<base href=https://evil.example/>",
  "<meta http-equiv=refresh content='0;url=https://evil.example'>",
  "<link rel=stylesheet href=https://evil.example/a.css>",
  "<details open ontoggle=alert(1)>",
  "<a href='javascript:alert(1)'>x</a>",
  "[x](javascript:alert(1))",
  "[x](JaVaScRiPt:alert(1))",
  "[x](java\nscript:alert(1))",
  "[x](&#106;avascript:alert(1))",
  "[x](\u0001javascript:alert(1))",
  "[x](vbscript:msgbox(1))",
  "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
  "[x](file:///etc/passwd)",
  "[x](blob:http://127.0.0.1/1)",
  "[x](//evil.example)",
  "[x](/requests/1)",
  "[x](https://a.example \"\\\" onmouseover=alert(1) \\\"\")",
  "[x][y]\n\n[y]: javascript:alert(1)",
  "<javascript:alert(1)>",
  "<https://a.example/?\"onclick=alert(1)>",
  "![x](https://evil.example/pixel.png)",
  "![x](javascript:alert(1))",
  "![\"><img src=x onerror=alert(1)>](https://a.example/\"onerror=\"alert(1))",
  "![x](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+)",
  "```html\n<script>alert(1)</script>\n```",
  "```\"><script>alert(1)</script>\nx\n```",
  "```js onload=alert(1)\nlet a = '</code></pre><script>alert(1)</script>';\n```",
  "```xml\n<a onclick=\"alert(1)\">&lt;script&gt;</a>\n```",
  "`<img src=x onerror=alert(1)>`",
  "| <img src=x onerror=alert(1)> | b |\n|:--|--:|\n| [x](javascript:alert(1)) | <script>1</script> |",
  "$\\href{javascript:alert(1)}{x}$",
  "$\\url{javascript:alert(1)}$",
  "$\\includegraphics{https://evil.example/a.png}$",
  "$\\htmlId{x}{y} \\htmlStyle{color:red}{z} \\htmlData{a=b}{c}$",
  "$\\text{<img src=x onerror=alert(1)>}$",
  "$</span><script>alert(1)</script>$",
  "$$\n\\text{</annotation><script>alert(1)</script>}\n$$",
  "\\[ \\unicode{<script>} \\]",
  "$\\def\\a{\\a\\a}\\a$",
  "# <script>alert(1)</script>",
  "> <script>alert(1)</script>\n> - <img src=x onerror=alert(1)>",
  "&lt;script&gt;alert(1)&lt;/script&gt;",
  "<!--><img src=x onerror=alert(1)>-->",
  "<![CDATA[<script>alert(1)</script>]]>",
  "<x:script xmlns:x='http://www.w3.org/1999/xhtml'>alert(1)</x:script>",
  "\u0000<script\u0000>alert(1)</script>",
  "<noscript><p title=\"</noscript><img src=x onerror=alert(1)>\">",
  "<template><script>alert(1)</script></template>",
];

test("hostile output stays text", () => {
  for (const text of HOSTILE) assertHarmless(shown(text), text);
});

test("hostile output stays text while it grows, however it is cut", () => {
  for (const text of HOSTILE) {
    const splitter = new BlockSplitter();
    const whole = `before\n\n${text}\n\nafter`;
    for (let length = 1; length <= whole.length; length += 3)
      for (const block of splitter.split(whole.slice(0, length))) {
        const element = document.createElement("div");
        renderBlock(element, block, splitter.references, true);
        assertHarmless(element, whole.slice(0, length));
      }
  }
});

test("tags are shown as they were written", () => {
  assert.equal(shown("a <script>alert(1)</script> b").textContent!.trim(), "a <script>alert(1)</script> b");
  const code = shown("```html\n<script>alert(1)</script>\n```");
  assert.equal(code.querySelector("code")!.textContent, "<script>alert(1)</script>\n");
  assert.ok(code.querySelector("code .hljs-tag"));
});

test("no picture is fetched: it becomes a link", () => {
  const element = shown("![a cat](https://evil.example/cat.png)");
  assert.equal(element.querySelectorAll("img").length, 0);
  const link = element.querySelector("a")!;
  assert.deepEqual([link.textContent, link.getAttribute("href")], ["a cat", "https://evil.example/cat.png"]);
});

test("links to http(s) and mail work, nothing else is a link", () => {
  const element = shown("[a](https://a.example/?q=1) [b](mailto:b@a.example) https://c.example [d](ftp://d.example) e.example");
  const links = [...element.querySelectorAll("a")].map((one) => one.getAttribute("href"));
  assert.deepEqual(links, ["https://a.example/?q=1", "mailto:b@a.example", "https://c.example"]);
});

test("a formula that expands for ever ends", () => {
  const begin = performance.now();
  shown("$\\def\\a{\\a\\a}\\a$ and $" + "{".repeat(3000) + "$");
  assert.ok(performance.now() - begin < 5000);
});
