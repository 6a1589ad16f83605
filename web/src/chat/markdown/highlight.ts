/** Colours for code: highlight.js with its common languages. */
import hljs from "highlight.js/lib/common";

/** Markup of coloured code; undefined for a language that is not known. */
export function highlighted(text: string, language: string): string | undefined {
  return hljs.getLanguage(language) && hljs.highlight(text, { language, ignoreIllegals: true }).value;
}
