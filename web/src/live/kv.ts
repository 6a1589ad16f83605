/** The map of KV memory: its columns, and how its cells lie in a rectangle. */
import type { KvSnapshot } from "./types.ts";

export interface KvCells {
  running: Uint8Array;
  kept: Uint8Array;
  owners: Uint8Array;
}

/** Owner of a cell whose sequence is not among the rows of the table. */
export const OTHERS = 255;

export function cellsOf(kv: KvSnapshot): KvCells {
  return { running: column(kv.running), kept: column(kv.kept), owners: column(kv.owners) };
}

function column(text: string): Uint8Array {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

export interface KvGrid {
  /** Pixels from one cell to the next. */
  pitch: number;
  columns: number;
  rows: number;
}

/** `cells` squares in `width` pixels, about `height` high. */
export function gridOf(cells: number, width: number, height: number): KvGrid {
  if (!cells || width <= 0) return { pitch: 0, columns: 0, rows: 0 };
  const pitch = Math.max(4, Math.min(16, Math.floor(Math.sqrt((width * height) / cells))));
  const columns = Math.max(1, Math.floor(width / pitch));
  return { pitch, columns, rows: Math.ceil(cells / columns) };
}

/** The cell at a point, if there is one. */
export function cellAt(grid: KvGrid, cells: number, x: number, y: number): number | undefined {
  if (!grid.pitch || x < 0 || y < 0) return undefined;
  const column = Math.floor(x / grid.pitch);
  const index = Math.floor(y / grid.pitch) * grid.columns + column;
  return column < grid.columns && index < cells ? index : undefined;
}

/** Colour of an owner, 0 to 5; the same sequence keeps it from event to event. */
export const colourOf = (rid: string): number => Number(rid.slice(-6)) % 6;
