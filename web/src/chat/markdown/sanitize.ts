/** The one place where text becomes markup: DOMPurify with short lists of what is allowed. */
import DOMPurify, { type Config } from "dompurify";

/** Elements of Markdown. There is none that fetches, runs or submits anything. */
const MARKDOWN: Config = {
  ALLOWED_TAGS: [
    "p", "br", "hr", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong", "s", "a", "table", "thead",
    "tbody", "tr", "th", "td", "span",
  ],
  ALLOWED_ATTR: ["href", "title", "class", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
};
/** Elements of formulas: what KaTeX writes. */
const MATH: Config = {
  ALLOWED_TAGS: [
    "math", "menclose", "merror", "mfrac", "mi", "mmultiscripts", "mn", "mo", "mover", "mpadded", "mphantom", "mprescripts", "mroot",
    "mrow", "ms", "mspace", "msqrt", "mstyle", "msub", "msubsup", "msup", "mtable", "mtd", "mtext", "mtr", "munder", "munderover",
    "semantics", "none",
  ],
  ALLOWED_ATTR: [
    "accent", "accentunder", "columnalign", "columnlines", "columnspacing", "depth", "display", "displaystyle", "fence", "height",
    "linethickness", "lspace", "mathbackground", "mathcolor", "mathvariant", "maxsize", "minsize", "movablelimits", "notation", "rowlines",
    "rowspacing", "rspace", "scriptlevel", "separator", "stretchy", "symmetric", "voffset", "width", "xmlns",
  ],
  ADD_FORBID_CONTENTS: ["annotation"],
  FORBID_TAGS: ["annotation"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
};
const CLASSES = /^(?:hljs(?:-[\w-]+)?|language-[\w+#.-]+|math-(?:inline|display)|align-(?:left|center|right)|image-link|[\w-]+_)$/;

let purifier: typeof DOMPurify | undefined;

/** Links open a tab of their own that knows nothing of this one; classes are those that the styles know. */
function prepared(): typeof DOMPurify {
  if (purifier) return purifier;
  purifier = DOMPurify(window);
  purifier.addHook("uponSanitizeAttribute", (_, attribute) => {
    if (attribute.attrName !== "class") return;
    const known = attribute.attrValue.split(/\s+/).filter((name) => CLASSES.test(name));
    if (known.length) attribute.attrValue = known.join(" ");
    else attribute.keepAttr = false;
  });
  purifier.addHook("afterSanitizeAttributes", (node) => {
    if (node.nodeName !== "A") return;
    if (!node.hasAttribute("href")) return;
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  });
  return purifier;
}

export function markdownMarkup(html: string): DocumentFragment {
  return prepared().sanitize(html, { ...MARKDOWN, RETURN_DOM_FRAGMENT: true });
}

export function mathMarkup(mathml: string): DocumentFragment {
  return prepared().sanitize(mathml, { ...MATH, NAMESPACE: "http://www.w3.org/1999/xhtml", RETURN_DOM_FRAGMENT: true });
}
