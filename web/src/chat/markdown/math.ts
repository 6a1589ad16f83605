/** Formulas in Markdown: $..$, $$..$$, \(..\) and \[..\]. They become elements with the TeX as text, for `render.ts`. */
import type { MarkdownIt } from "markdown-it";

const INLINE: readonly (readonly [open: string, close: string, display: boolean])[] = [
  ["$$", "$$", true],
  ["\\[", "\\]", true],
  ["\\(", "\\)", false],
  ["$", "$", false],
];

export function mathPlugin(md: MarkdownIt): void {
  md.inline.ruler.before("escape", "math", (state, silent) => {
    const { src, pos } = state;
    const kind = INLINE.find(([open]) => src.startsWith(open, pos));
    if (!kind) return false;
    const [open, close, display] = kind;
    const begin = pos + open.length;
    const end = open === "$" ? dollarEnd(src, begin) : src.indexOf(close, begin);
    if (end < 0 || end >= state.posMax || !src.slice(begin, end).trim()) return false;
    if (!silent) {
      const token = state.push(display ? "math_display" : "math_inline", "span", 0);
      token.content = src.slice(begin, end).trim();
    }
    state.pos = end + close.length;
    return true;
  });
  md.block.ruler.before("fence", "math_block", (state, first, last, silent) => {
    const begin = state.bMarks[first]! + state.tShift[first]!;
    const open = state.src.slice(begin, begin + 2);
    const close = open === "$$" ? "$$" : open === "\\[" ? "\\]" : undefined;
    if (!close || state.sCount[first]! - state.blkIndent >= 4) return false;
    const lines: string[] = [];
    for (let line = first; line < last; line++) {
      const from = line === first ? begin + 2 : state.bMarks[line]! + state.tShift[line]!;
      const text = state.src.slice(from, state.eMarks[line]);
      const end = text.indexOf(close);
      if (end < 0) {
        if (!text.trim() && line > first) return false; // as in TeX; and a growing text is never taken back
        lines.push(text);
        continue;
      }
      lines.push(text.slice(0, end));
      const content = lines.join("\n").trim();
      if (text.slice(end + 2).trim() || !content) return false; // text goes on: it is inline
      if (silent) return true;
      const token = state.push("math_block", "div", 0);
      token.content = content;
      token.map = [first, line + 1];
      state.line = line + 1;
      return true;
    }
    return false;
  }, { alt: ["paragraph", "reference", "blockquote", "list"] });
  const escaped = md.utils.escapeHtml;
  md.renderer.rules["math_inline"] = (tokens, i) => `<span class="math-inline">${escaped(tokens[i]!.content)}</span>`;
  md.renderer.rules["math_display"] = (tokens, i) => `<span class="math-display">${escaped(tokens[i]!.content)}</span>`;
  md.renderer.rules["math_block"] = (tokens, i) => `<p><span class="math-display">${escaped(tokens[i]!.content)}</span></p>\n`;
}

/** The end of $..$ by Pandoc's rule, under which prices are none: no space inside the dollars, no digit behind them. */
function dollarEnd(src: string, begin: number): number {
  if (/\s/.test(src[begin] ?? " ")) return -1;
  for (let end = src.indexOf("$", begin); end >= 0; end = src.indexOf("$", end + 1)) {
    if (src[end - 1] === "\\") continue;
    if (src.slice(begin, end).includes("\n\n")) return -1;
    return /\s/.test(src[end - 1]!) || /\d/.test(src[end + 1] ?? "") ? -1 : end;
  }
  return -1;
}
