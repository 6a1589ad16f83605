import { signal } from "@preact/signals";
import { useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { copyText } from "../shared/clipboard.ts";
import { memo } from "../shared/memo.tsx";

type Renderer = typeof import("./markdown/render.ts");

const renderer = signal<Renderer | undefined>(undefined);

/** Fetches what renders Markdown. Until it is there, text is shown as it is. */
export function loadMarkdown(): void {
  if (!renderer.value) void import("./markdown/render.ts").then((module) => (renderer.value = module));
}

/** Text as Markdown. `growing`: there is more to come; only its last block is rendered again, then. */
export function Markdown({ text, growing }: { text: string; growing: boolean }) {
  const module = renderer.value;
  const splitter = useMemo(() => module && new module.BlockSplitter(), [module]);
  if (!module || !splitter) return <div class="markdown plain">{text}</div>;
  const blocks = splitter.split(text, !growing);
  const last = blocks.length - 1;
  return (
    <div class="markdown" onClick={copyCode}>
      {blocks.map((block, i) => (
        <Block key={i} module={module} text={block} references={splitter.references} growing={growing && i === last} />
      ))}
    </div>
  );
}

interface BlockProps {
  module: Renderer;
  text: string;
  references: InstanceType<Renderer["BlockSplitter"]>["references"];
  growing: boolean;
}

const Block = memo(({ module, text, references, growing }: BlockProps) => {
  const element = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => module.renderBlock(element.current!, text, references, growing), [text, growing]);
  return <div ref={element} class="block" />;
});

/** The button over a block of code. */
function copyCode(event: MouseEvent): void {
  const button = (event.target as Element).closest<HTMLButtonElement>("button.code-copy");
  if (!button) return;
  void copyText(button.closest(".code-block")?.querySelector("code")?.textContent ?? "").then(() => {
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
