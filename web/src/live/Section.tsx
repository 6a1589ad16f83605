import type { ComponentChildren } from "preact";

interface Props {
  id: string;
  title: string;
  /** Beside the title. */
  aside?: ComponentChildren;
  class?: string;
  children: ComponentChildren;
}

export function Section({ id, title, aside, class: more, children }: Props) {
  return (
    <section class={`live-section ${more ?? ""}`} aria-labelledby={`${id}-title`} id={id}>
      <header class="live-section-head">
        <h2 id={`${id}-title`}>{title}</h2>
        {aside !== undefined && <p class="live-aside">{aside}</p>}
      </header>
      {children}
    </section>
  );
}

/** A table that scrolls sideways where it is too wide; by keyboard, too. */
export function TableBox({ label, children }: { label: string; children: ComponentChildren }) {
  return (
    <div class="live-table-box" role="region" aria-label={label} tabIndex={0}>
      {children}
    </div>
  );
}
