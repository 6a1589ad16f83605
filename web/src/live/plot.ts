/** Geometry of a plot: scales, ticks and paths. Pixels from the upper left corner. */
export interface Frame {
  width: number;
  height: number;
  left: number;
  bottom: number;
  top: number;
}

/** A round number at or above `most`, and the ticks from 0 to it. */
export function ticksOf(most: number): number[] {
  if (!(most > 0)) return [0, 1];
  const rough = most / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999)!;
  const count = Math.ceil(most / step - 1e-9);
  return Array.from({ length: count + 1 }, (_, index) => Number((index * step).toPrecision(6)));
}

/** Horizontal place of a moment: the plot ends at `end` and shows `span` seconds. */
export const xOf = (at: number, end: number, span: number, frame: Frame): number =>
  frame.width - ((end - at) / span) * (frame.width - frame.left);

export const yOf = (value: number, most: number, frame: Frame): number =>
  frame.height - frame.bottom - (Math.min(value, most) / most) * (frame.height - frame.bottom - frame.top);

/** A line through the points that have a value; it is interrupted where more than `gap` seconds have none. A point alone
 * is a dot, if the ends of lines are round. */
export function linePath(points: { at: number; value: number }[], end: number, span: number, most: number, frame: Frame, gap = 3): string {
  let path = "";
  let last = -Infinity;
  for (const { at, value } of points) {
    if (Number.isNaN(value)) continue;
    const place = `${xOf(at, end, span, frame).toFixed(1)} ${yOf(value, most, frame).toFixed(1)}`;
    path += at - last > gap ? `M${place}h0` : `L${place}`;
    last = at;
  }
  return path;
}

/** Index of the point nearest to a horizontal place. */
export function nearest(times: number[], x: number, end: number, span: number, frame: Frame): number {
  let best = -1;
  let distance = Infinity;
  times.forEach((at, index) => {
    const away = Math.abs(xOf(at, end, span, frame) - x);
    if (away < distance) [best, distance] = [index, away];
  });
  return best;
}
