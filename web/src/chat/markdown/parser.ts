/** Markdown as chats write it: no HTML, no images that are fetched, links to http(s) and mailto only. */
import MarkdownIt, { type Env } from "markdown-it";
import { mathPlugin } from "./math.ts";

export type References = NonNullable<Env["references"]>;

export const md = new MarkdownIt({ html: false, linkify: true, typographer: false });
md.use(mathPlugin);
md.validateLink = (url) => /^(?:https?|mailto):/i.test(url.trim());
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });

/** Headings of an answer stand below those of the page. */
for (const rule of ["heading_open", "heading_close"])
  md.renderer.rules[rule] = (tokens, i, options, _, self) => {
    const token = tokens[i]!;
    token.tag = `h${Math.min(Number(token.tag[1]) + 2, 6)}`;
    return self.renderToken(tokens, i, options);
  };

/** A picture of another host would tell it who reads: it becomes a link. */
md.renderer.rules["image"] = (tokens, i) => {
  const token = tokens[i]!;
  const { escapeHtml } = md.utils;
  const label = escapeHtml(token.content || "picture");
  return `<a class="image-link" href="${escapeHtml(String(token.attrGet("src") ?? ""))}">${label}</a>`;
};

/** markdown-it says the alignment in a style, which the page's policy forbids. */
for (const rule of ["th_open", "td_open"])
  md.renderer.rules[rule] = (tokens, i, options, _, self) => {
    const token = tokens[i]!;
    const align = /text-align:(left|center|right)/.exec(String(token.attrGet("style") ?? ""))?.[1];
    token.attrs = align ? [["class", `align-${align}`]] : null;
    return self.renderToken(tokens, i, options);
  };

/** The class of a fence names its language and nothing else. */
md.renderer.rules["fence"] = (tokens, i) => {
  const token = tokens[i]!;
  const language = /^[\w+#.-]+/.exec(token.info.trim())?.[0].toLowerCase();
  const name = language ? ` class="language-${language}"` : "";
  return `<pre><code${name}>${md.utils.escapeHtml(token.content)}</code></pre>\n`;
};
