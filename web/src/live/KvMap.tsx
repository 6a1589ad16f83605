import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { theme } from "../shared/theme.ts";
import { percent, whole } from "./format.ts";
import { cellAt, cellsOf, gridOf, OTHERS, type KvCells } from "./kv.ts";
import type { LiveModel } from "./model.ts";
import { paint, type KvColouring, type KvPalette } from "./paint_kv.ts";
import { Key } from "./Requests.tsx";
import { Section } from "./Section.tsx";
import type { KvSnapshot, SequenceSnapshot } from "./types.ts";
import { useWidth } from "./use_width.ts";

const HEIGHT = 230;

/** KV memory: what is in use, cached and free; by state or by request. */
export function KvMap({ model }: { model: LiveModel }) {
  const { kv: counts, requests } = model.snapshot!;
  const map = model.kv;
  const [colouring, setColouring] = useState<KvColouring>("state");
  return (
    <Section id="live-kv" title="KV memory" aside={`${whole(counts.total)} slots, one a token`}>
      <p class="live-words" id="live-kv-words">{inWords(counts, map ?? counts, requests.running)}</p>
      <fieldset class="live-choice">
        <legend class="visually-hidden">Colours of the map</legend>
        <Choice value="state" text="By state" chosen={colouring} choose={setColouring} />
        <Choice value="owner" text="By request" chosen={colouring} choose={setColouring} />
      </fieldset>
      {map ? (
        <Map map={map} rows={requests.rows} stale={model.stale} colouring={colouring} />
      ) : (
        <p class="live-empty">The router has not told its map yet.</p>
      )}
    </Section>
  );
}

/** `tree`: who knows the size of the prefix tree. */
function inWords(kv: KvSnapshot, tree: KvSnapshot, running: number): string {
  const total = Math.max(kv.total, 1);
  const free = Math.max(0, kv.total - kv.used - kv.cached);
  const copies = kv.states_total > 0 ? ` ${whole(kv.states)} of ${whole(kv.states_total)} copies of recurrent states are in use.` : "";
  const windows = kv.windows_total > 0 ? ` ${whole(kv.windows)} of ${whole(kv.windows_total)} slots of layers with windows are in use.` : "";
  return (
    `${whole(kv.used)} in use by ${whole(running)} ${running === 1 ? "sequence" : "sequences"} (${percent(kv.used / total)}), ` +
    `${whole(kv.cached)} cached (${percent(kv.cached / total)}), ${whole(free)} free. ` +
    `The prefix tree holds ${whole(tree.tree_tokens)} tokens in ${whole(tree.tree_nodes)} nodes.${windows}${copies}`
  );
}

interface ChoiceProps {
  value: KvColouring;
  text: string;
  chosen: KvColouring;
  choose: (value: KvColouring) => void;
}

function Choice({ value, text, chosen, choose }: ChoiceProps) {
  return (
    <label>
      <input type="radio" name="kv-colouring" value={value} checked={chosen === value} onChange={() => choose(value)} />
      <span>{text}</span>
    </label>
  );
}

interface MapProps {
  map: KvSnapshot;
  rows: SequenceSnapshot[];
  stale: boolean;
  colouring: KvColouring;
}

function Map({ map, rows, stale, colouring }: MapProps) {
  const [box, width] = useWidth<HTMLDivElement>();
  const canvas = useRef<HTMLCanvasElement>(null);
  const legend = useRef<HTMLDivElement>(null);
  const [pointed, setPointed] = useState<number | undefined>(undefined);
  const cells = useMemo(() => cellsOf(map), [map]);
  const number = cells.running.length;
  const grid = gridOf(number, width, HEIGHT);
  const high = grid.rows * grid.pitch;
  useEffect(() => {
    const context = canvas.current?.getContext("2d");
    if (!context || !legend.current || !width) return;
    const scale = devicePixelRatio || 1;
    canvas.current!.width = width * scale;
    canvas.current!.height = high * scale;
    canvas.current!.style.setProperty("height", `${high}px`);
    context.scale(scale, scale);
    paint(context, cells, grid, rows, colouring, paletteOf(legend.current));
  }, [cells, width, high, colouring, theme.value]);
  const move = (event: PointerEvent) => {
    const place = (event.currentTarget as Element).getBoundingClientRect();
    setPointed(cellAt(grid, number, event.clientX - place.left, event.clientY - place.top));
  };
  return (
    <div class={stale ? "live-stale" : ""}>
      <div class="live-legend" ref={legend}>
        <span class={colouring === "state" ? "" : "visually-hidden"}><Key kind="1" text="in use" /></span>
        <Key kind="kept" text="cached" />
        <Key kind="free" text="free" />
        <span class={colouring === "owner" ? "" : "visually-hidden"}><Key kind="others" text="requests that are not listed" /></span>
        {colouring === "owner" && <span class="live-soft">Colours as in the table of requests</span>}
        <svg class="visually-hidden" aria-hidden="true">
          {[1, 2, 3, 4, 5, 6].map((kind) => <rect key={kind} data-owner={kind} class={`fill-${kind}`} />)}
        </svg>
      </div>
      <div class="live-kv-box" ref={box}>
        <canvas
          ref={canvas}
          role="img"
          aria-label={`Map of ${whole(number)} cells of ${whole(map.cell_slots)} slots each`}
          aria-describedby="live-kv-words"
          onPointerMove={move}
          onPointerLeave={() => setPointed(undefined)}
        />
      </div>
      <p class="live-soft live-kv-cell">
        {pointed !== undefined && pointed < number
          ? cellInWords(pointed, cells, map, rows)
          : stale
            ? "The router does not answer: this is its last map."
            : `A cell is ${whole(map.cell_slots)} ${map.cell_slots === 1 ? "slot" : "slots"}.`}
      </p>
    </div>
  );
}

function cellInWords(index: number, cells: KvCells, map: KvSnapshot, rows: SequenceSnapshot[]): string {
  const first = index * map.cell_slots;
  const last = Math.min(map.total, first + map.cell_slots) - 1;
  const owner = cells.owners[index]!;
  const row = owner === OTHERS ? undefined : rows[owner - 1];
  const whose = owner ? `, by ${row ? row.label || row.rid : "a request that is not listed"}` : "";
  return `Slots ${whole(first)} to ${whole(last)}: ${cells.running[index]} % in use${whose}, ${cells.kept[index]} % cached.`;
}

function paletteOf(legend: Element): KvPalette {
  const colour = (selector: string) => getComputedStyle(legend.querySelector(selector)!).fill;
  return {
    running: colour(".fill-1"),
    kept: colour(".fill-kept"),
    free: colour(".fill-free"),
    others: colour(".fill-others"),
    owners: [1, 2, 3, 4, 5, 6].map((kind) => colour(`[data-owner="${kind}"]`)),
  };
}
