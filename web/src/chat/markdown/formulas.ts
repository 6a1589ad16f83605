/** TeX becomes MathML, which browsers set by themselves: no fonts and no styles travel with the page. */
import katex from "katex";

/** The longest formula that is set, in characters. */
const LONGEST = 5_000;

/** MathML of TeX; undefined if it is none. Commands that could name other hosts or markup are not trusted. */
export function mathmlOf(tex: string, display: boolean): string | undefined {
  if (tex.length > LONGEST) return undefined;
  try {
    return katex.renderToString(tex, {
      output: "mathml",
      displayMode: display,
      throwOnError: true,
      strict: "ignore",
      trust: false,
      maxExpand: 200,
      maxSize: 20,
    });
  } catch {
    return undefined;
  }
}
