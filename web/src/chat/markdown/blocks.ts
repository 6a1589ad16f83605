/** Splits a growing text into blocks that are finished and one that may still change, so that only the last is rendered
 * again as tokens come. */
import { md, type References } from "./parser.ts";

export class BlockSplitter {
  private done: string[] = [];
  /** Length of the text that the finished blocks cover. */
  private settled = 0;
  private text = "";
  readonly references: References = {};

  /** The blocks of `text`. A text that goes on from the one before costs its unfinished block only. `complete`: there
   * is no more to come. */
  split(text: string, complete = false): readonly string[] {
    if (!text.startsWith(this.text)) this.reset();
    this.text = text;
    const rest = text.slice(this.settled);
    const references = { ...this.references };
    const starts = starting(rest, references);
    const from = starts.length > 1 ? starts.at(-1)! : 0;
    const known = Object.keys(this.references).length;
    if (Object.keys(references).length > known) // what the unfinished block defines may still change
      md.parse(complete ? rest : rest.slice(0, from), { references: this.references });
    this.done.push(...starts.slice(1).map((end, i) => rest.slice(i ? starts[i] : 0, end)));
    this.settled += from;
    return from < rest.length ? [...this.done, rest.slice(from)] : this.done;
  }

  private reset(): void {
    this.done = [];
    this.settled = 0;
    for (const name of Object.keys(this.references)) delete this.references[name];
  }
}

/** Where the top blocks begin. */
function starting(text: string, references: References): number[] {
  const lines = lineStarts(text);
  const found = new Set<number>();
  for (const token of md.parse(text, { references }))
    if (token.level === 0 && token.nesting >= 0 && token.map) found.add(lines[token.map[0]]!);
  return [...found].sort((a, b) => a - b);
}

function lineStarts(text: string): number[] {
  const found = [0];
  for (let i = text.indexOf("\n"); i >= 0; i = text.indexOf("\n", i + 1)) found.push(i + 1);
  return found;
}
