import { useState } from "preact/hooks";
import { clock, digits } from "./format.ts";
import { SPAN } from "./history.ts";
import { linePath, nearest, ticksOf, xOf, yOf, type Frame } from "./plot.ts";
import type { HistoryPoint } from "./types.ts";
import { useWidth } from "./use_width.ts";

export interface Series {
  name: string;
  /** Colour and dash, 1 to 3. */
  kind: number;
  /** NaN: it has none then. */
  of: (point: HistoryPoint) => number;
}

interface Props {
  title: string;
  unit: string;
  series: Series[];
  points: HistoryPoint[];
}

const HEIGHT = 150;

/** The last minutes as lines. Its text for screen readers says the last, least and greatest values. */
export function Plot({ title, unit, series, points }: Props) {
  const [ref, width] = useWidth<HTMLDivElement>();
  const [pointed, setPointed] = useState<number | undefined>(undefined);
  const frame: Frame = { width: Math.max(width - 6, 0), height: HEIGHT, left: 44, bottom: 20, top: 8 };
  const end = points.at(-1)?.at ?? 0;
  const values = series.map((one) => points.map((point) => ({ at: point.at, value: one.of(point) })));
  const ticks = ticksOf(Math.max(0, ...values.flat().map((one) => one.value || 0)));
  const most = ticks.at(-1)!;
  const chosen = pointed === undefined ? points.length - 1 : Math.min(pointed, points.length - 1);
  const point = points[chosen];
  const point_x = point ? xOf(point.at, end, SPAN, frame) : 0;
  const move = (event: PointerEvent) => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    setPointed(nearest(points.map((one) => one.at), event.clientX - box.left, end, SPAN, frame));
  };
  return (
    <figure class="live-plot">
      <figcaption>
        <h3>{title}</h3>
        <p class="live-legend">
          {series.map((one) => (
            <span class="live-key" key={one.name}>
              <svg class="live-swatch live-swatch-line" viewBox="0 0 16 10" aria-hidden="true">
                <path class={`line-${one.kind}`} d="M0 5H16" />
              </svg>
              {one.name} <b>{valueOf(one, point)}</b>
            </span>
          ))}
          {pointed !== undefined && point && <span class="live-soft">{clock(point.at)}</span>}
        </p>
      </figcaption>
      <div class="live-plot-box" ref={ref}>
        {width > 0 && (
          <svg
            width={width}
            height={HEIGHT}
            role="img"
            aria-label={inWords(title, unit, series, points)}
            onPointerMove={move}
            onPointerLeave={() => setPointed(undefined)}
          >
            {ticks.map((tick) => (
              <g key={tick}>
                <path class="live-grid" d={`M${frame.left} ${yOf(tick, most, frame)}H${frame.width}`} />
                <text class="live-tick" x={frame.left - 6} y={yOf(tick, most, frame) + 4} text-anchor="end">{digits(tick)}</text>
              </g>
            ))}
            {[4, 3, 2, 1, 0].map((minutes) => (
              <text
                key={minutes}
                class="live-tick"
                x={xOf(end - minutes * 60, end, SPAN, frame)}
                y={HEIGHT - 4}
                text-anchor={minutes ? "middle" : "end"}
              >
                {minutes ? `−${minutes} min` : "now"}
              </text>
            ))}
            {series.map((one, index) => (
              <path key={one.name} class={`live-line line-${one.kind}`} d={linePath(values[index]!, end, SPAN, most, frame)} />
            ))}
            {pointed !== undefined && point && <path class="live-cursor" d={`M${point_x} ${frame.top}V${HEIGHT - frame.bottom}`} />}
          </svg>
        )}
      </div>
    </figure>
  );
}

function valueOf(series: Series, point: HistoryPoint | undefined): string {
  const value = point ? series.of(point) : NaN;
  return Number.isNaN(value) ? "–" : digits(value);
}

function inWords(title: string, unit: string, series: Series[], points: HistoryPoint[]): string {
  if (!points.length) return `${title}: nothing is known yet.`;
  const each = series.map((one) => {
    const values = points.map(one.of).filter((value) => !Number.isNaN(value));
    if (!values.length) return `${one.name} none`;
    return `${one.name} now ${valueOf(one, points.at(-1))}, from ${digits(Math.min(...values))} to ${digits(Math.max(...values))} ${unit}`;
  });
  return `${title}, the last five minutes: ${each.join("; ")}.`;
}
