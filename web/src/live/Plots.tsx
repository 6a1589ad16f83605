import { Plot, type Series } from "./Plot.tsx";
import { Section } from "./Section.tsx";
import type { HistoryPoint } from "./types.ts";

const SPEED: Series[] = [
  { name: "produced", kind: 1, of: (point) => point.generated },
  { name: "prompts", kind: 2, of: (point) => point.prompt },
];
const STEP: Series[] = [{ name: "mean", kind: 1, of: (point) => (point.steps ? point.step_ms : NaN) }];
const BATCH: Series[] = [
  { name: "sequences", kind: 1, of: (point) => point.rows },
  { name: "prompt", kind: 2, of: (point) => point.prefill_tokens },
  { name: "answer", kind: 3, of: (point) => point.decode_tokens },
];

const QUEUE: Series[] = [
  { name: "running", kind: 1, of: (point) => point.running },
  { name: "waiting", kind: 3, of: (point) => point.waiting },
];

export function Plots({ points }: { points: HistoryPoint[] }) {
  return (
    <Section id="live-plots" title="The last five minutes">
      <div class="live-plots">
        <Plot title="Tokens a second" unit="tokens a second" series={SPEED} points={points} />
        <Plot title="Step time, ms" unit="milliseconds" series={STEP} points={points} />
        <Plot title="A step: tokens, sequences" unit="a step" series={BATCH} points={points} />
        <Plot title="Sequences" unit="sequences" series={QUEUE} points={points} />
      </div>
    </Section>
  );
}
