import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { memo } from "../shared/memo.tsx";
import type { Token } from "./model.ts";

/** The answer token by token, coloured by probability. The pointer or the arrow keys show a token's alternatives. */
export function Tokens({ tokens }: { tokens: readonly Token[] }) {
  const [chosen, choose] = useState(-1);
  const frame = useRef<HTMLDivElement>(null);
  const keyDown = (event: KeyboardEvent) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) choose(Math.min(Math.max(chosen + step, 0), tokens.length - 1));
    else if (event.key === "Home") choose(0);
    else if (event.key === "End") choose(tokens.length - 1);
    else if (event.key === "Escape" && chosen >= 0) choose(-1);
    else return;
    event.preventDefault();
  };
  const over = (event: MouseEvent) => {
    const index = (event.target as HTMLElement).dataset["i"];
    if (index !== undefined) choose(Number(index));
  };
  const token = tokens[chosen];
  return (
    <div ref={frame} class="tokens-frame" onMouseLeave={() => choose(-1)}>
      <div
        class="tokens"
        tabIndex={0}
        role="group"
        aria-label="Tokens and their probabilities; arrow keys go through them"
        onKeyDown={keyDown}
        onMouseOver={over}
        onBlur={() => choose(-1)}
      >
        <Row tokens={tokens} />
      </div>
      {token && <Tip key={chosen} token={token} index={chosen} frame={frame.current!} />}
    </div>
  );
}

const Row = memo(({ tokens }: { tokens: readonly Token[] }) => (
  <>{tokens.map((token, i) => <span key={i} class={`token ${level(token.logprob)}`} data-i={i}>{token.text}</span>)}</>
));

/** A class of the style sheet: p9 is nearly certain, p0 a surprise. */
export function level(logprob: number): string {
  const p = Math.exp(logprob);
  return p >= 0.9 ? "p9" : p >= 0.6 ? "p6" : p >= 0.3 ? "p3" : p >= 0.1 ? "p1" : "p0";
}

export function percent(logprob: number): string {
  const p = Math.exp(logprob) * 100;
  return p >= 99.95 ? "100 %" : p < 0.01 ? "< 0.01 %" : `${p.toFixed(p < 1 ? 2 : 1)} %`;
}

function Tip({ token, index, frame }: { token: Token; index: number; frame: HTMLElement }) {
  const tip = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const span = frame.querySelector<HTMLElement>(`[data-i="${index}"]`);
    const element = tip.current!;
    if (!span) return;
    span.classList.add("chosen");
    const [box, own] = [frame.getBoundingClientRect(), span.getClientRects()[0] ?? span.getBoundingClientRect()];
    const left = Math.min(own.left - box.left, box.width - element.offsetWidth);
    element.style.left = `${Math.max(0, left)}px`;
    element.style.top = `${own.bottom - box.top + 6}px`;
    return () => span.classList.remove("chosen");
  }, []);
  const others = token.top.filter((one) => one.text !== token.text);
  return (
    <div ref={tip} class="token-tip" role="status">
      <p>
        <code>{visible(token.text)}</code> <strong>{percent(token.logprob)}</strong>
      </p>
      {others.length > 0 && (
        <table>
          <caption class="visually-hidden">Alternatives</caption>
          <tbody>
            {others.map((one, i) => (
              <tr key={i}>
                <td><code>{visible(one.text)}</code></td>
                <td>{percent(one.logprob)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </div>
  );
}

/** Spaces and line ends as signs. */
const visible = (text: string): string => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
