/** Paints the map of KV memory. Colours come from the legend's swatches, so the theme decides them. */
import { colourOf, OTHERS, type KvCells, type KvGrid } from "./kv.ts";
import type { SequenceSnapshot } from "./types.ts";

export type KvColouring = "state" | "owner";

export interface KvPalette {
  running: string;
  kept: string;
  free: string;
  others: string;
  /** Six, for owners. */
  owners: string[];
}

export function paint(
  context: CanvasRenderingContext2D,
  cells: KvCells,
  grid: KvGrid,
  rows: SequenceSnapshot[],
  colouring: KvColouring,
  palette: KvPalette,
): void {
  const { pitch, columns } = grid;
  const size = pitch - (pitch > 5 ? 1 : 0.5);
  for (let index = 0; index < cells.running.length; index++) {
    const x = (index % columns) * pitch;
    const y = Math.floor(index / columns) * pitch;
    const running = cells.running[index]!;
    const kept = cells.kept[index]!;
    fill(context, palette.free, 1, x, y, size);
    if (kept) fill(context, palette.kept, 0.25 + 0.55 * (kept / 100), x, y, size);
    if (running) fill(context, colouring === "state" ? palette.running : ownerColour(cells.owners[index]!, rows, palette), 0.35 + 0.65 * (running / 100), x, y, size);
  }
}

function fill(context: CanvasRenderingContext2D, colour: string, alpha: number, x: number, y: number, size: number): void {
  context.globalAlpha = alpha;
  context.fillStyle = colour;
  context.fillRect(x, y, size, size);
}

function ownerColour(owner: number, rows: SequenceSnapshot[], palette: KvPalette): string {
  const row = owner === OTHERS ? undefined : rows[owner - 1];
  return row ? palette.owners[colourOf(row.rid)]! : palette.others;
}
