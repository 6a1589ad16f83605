import { clock } from "./format.ts";
import type { Note } from "./notes.ts";
import { Section } from "./Section.tsx";

const MARKS = { good: "✓", bad: "!", plain: "·" };

/** Deaths, repairs and connections, the newest first. */
export function Notes({ notes }: { notes: Note[] }) {
  return (
    <Section id="live-notes" title="What has happened">
      {notes.length === 0 ? (
        <p class="live-empty">Nothing since this page was opened.</p>
      ) : (
        <ol class="live-notes">
          {notes.map((note, index) => (
            <li key={`${note.at}-${notes.length - index}`} class={`live-note note-${note.kind}`}>
              <span class="live-mark" aria-hidden="true">{MARKS[note.kind]}</span>
              <time>{clock(note.at)}</time>
              <span>{note.text}</span>
            </li>
          ))}
        </ol>
      )}
    </Section>
  );
}
