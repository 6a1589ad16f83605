import { bytes, digits, percent, rate, seconds, whole } from "./format.ts";
import { Bar } from "./Bar.tsx";
import type { LiveModel } from "./model.ts";
import { Section } from "./Section.tsx";
import type { ActorCondition, ActorSnapshot } from "./types.ts";

const TONES: Record<ActorCondition, string> = {
  starting: "warn",
  ready: "good",
  resetting: "warn",
  silent: "bad",
  killed: "bad",
  pausing: "bad",
  stopping: "warn",
  down: "bad",
  away: "bad",
};

/** The processes: a card each. */
export function Actors({ model }: { model: LiveModel }) {
  const actors = model.snapshot!.actors;
  const ready = actors.filter((actor) => actor.state === "ready").length;
  return (
    <Section id="live-actors" title="Processes" aside={`${ready} of ${actors.length} ready`}>
      <ul class="live-cards">
        {actors.map((actor) => <Card key={actor.name} actor={actor} model={model} />)}
      </ul>
    </Section>
  );
}

function Card({ actor, model }: { actor: ActorSnapshot; model: LiveModel }) {
  const cpu = model.cpu.get(actor.name);
  return (
    <li class={`live-card tone-${TONES[actor.state]}`} data-actor={actor.name} data-state={actor.state}>
      <h3>{actor.name}</h3>
      <span class={`live-pill tone-${TONES[actor.state]}`}>{actor.state}</span>
      <p class="live-doing">{doing(actor, model)}</p>
      {actor.total > 0 && <Bar parts={[{ share: actor.done / actor.total, kind: "1" }]} />}
      <dl class="live-facts">
        <Fact name="CPU" value={cpu === undefined ? "–" : percent(cpu)} />
        <Fact name="Memory" value={actor.pid ? bytes(actor.memory) : "–"} />
        <Fact name="Age" value={actor.pid ? seconds(actor.age) : "–"} />
      </dl>
      {actor.restarts > 0 && (
        <p class="live-died">
          {actor.restarts} {actor.restarts > 1 ? "restarts" : "restart"}: {actor.died}
        </p>
      )}
    </li>
  );
}

function Fact({ name, value }: { name: string; value: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

function doing(actor: ActorSnapshot, model: LiveModel): string {
  switch (actor.state) {
    case "ready":
      return work(actor.name, model);
    case "starting":
      return actor.total ? `${actor.doing}: ${bytes(actor.done)} of ${bytes(actor.total)}` : actor.doing || "starting";
    case "resetting":
      return "leaves the old epoch";
    case "silent":
      return `no answer for ${seconds(actor.wait)}`;
    case "killed":
      return "is being ended";
    case "pausing":
      return `starts again in ${seconds(actor.wait)}`;
    case "away":
      return "what needs it is refused";
    case "stopping":
      return "ends";
    default:
      return actor.died || "not started";
  }
}

/** What a process that is ready does now. */
function work(name: string, model: LiveModel): string {
  const { requests, images, engine } = model.snapshot!;
  const point = model.history.at(-1);
  const inStage = (stage: string) => requests.rows.filter((row) => row.stage === stage).length;
  if (name.startsWith("worker")) return point?.steps ? `${rate(point.steps)} steps a second` : requests.running ? "computes a step" : "idle";
  switch (name) {
    case "supervisor":
      return `watches, epoch ${engine.epoch}`;
    case "router":
      return requests.running || requests.waiting ? `${whole(requests.running)} running, ${whole(requests.waiting)} waiting` : "idle";
    case "http":
      return `${whole(requests.live)} live, ${whole(requests.retained)} kept`;
    case "tokenizer":
      return inStage("tokenizing") ? `${inStage("tokenizing")} prompts` : "idle";
    case "detokenizer":
      return point?.generated ? `${digits(point.generated)} tokens a second` : "idle";
    case "guide":
      return requests.rows.some((row) => row.constrained) ? "masks of constrained answers" : "idle";
    case "visual":
      return images?.working ? `${whole(images.working)} images in work` : "idle";
    default:
      return "";
  }
}
