/** What GET /live/events sends, as /openapi.json describes it (LiveSnapshot). Times are seconds, sizes bytes. */
export interface EngineSnapshot {
  state: "starting" | "running" | "repairing" | "stopping";
  trouble: string;
  draining: boolean;
  epoch: number;
  seconds: number;
  model_name: string;
  viewers: number;
}

export type ActorCondition =
  | "starting"
  | "ready"
  | "resetting"
  | "silent"
  | "killed"
  | "pausing"
  | "stopping"
  | "down"
  | "away";

export interface ActorSnapshot {
  name: string;
  state: ActorCondition;
  pid: number;
  age: number;
  restarts: number;
  died: string;
  doing: string;
  done: number;
  total: number;
  wait: number;
  cpu_seconds: number;
  memory: number;
  shared: number;
}

export interface LaneSnapshot {
  source: string;
  target: string;
  waiting: number;
  capacity: number;
  messages: number;
  refusals: number;
}

export interface KvSnapshot {
  total: number;
  used: number;
  cached: number;
  tree_tokens: number;
  tree_nodes: number;
  cell_slots: number;
  /** base64, a byte a cell; so are the next two. */
  running: string;
  kept: string;
  owners: string;
  /** Copies of recurrent states: in use, and most. */
  states: number;
  states_total: number;
  /** Slots of layers with windows, where these have slots of their own: in use, and in all. */
  windows: number;
  windows_total: number;
}

export type SequenceStage =
  | "repair"
  | "quarantine"
  | "tokenizing"
  | "images"
  | "constraint"
  | "queued"
  | "prefill"
  | "decode"
  | "delivering";

export interface SequenceSnapshot {
  /** Decimal: it has more bits than a number here. */
  rid: string;
  index: number;
  label: string;
  client: string;
  task: "generate" | "embed" | "score";
  stage: SequenceStage;
  prompt: number;
  cached: number;
  computed: number;
  produced: number;
  most: number;
  images: number;
  constrained: boolean;
  age: number;
  queued: number | null;
  first: number | null;
}

export interface RequestsSnapshot {
  live: number;
  most_live: number;
  retained: number;
  running: number;
  waiting: number;
  rows: SequenceSnapshot[];
  more: number;
}

export interface ImageSnapshot {
  key: string;
  tokens: number;
  size: number;
  ready: boolean;
  leases: number;
  age: number;
}

export interface ImagesSnapshot {
  items: number;
  capacity: number;
  size: number;
  most_size: number;
  leased: number;
  waiting: number;
  working: number;
  rows: ImageSnapshot[];
  more: number;
}

export interface HistoryPoint {
  at: number;
  generated: number;
  prompt: number;
  steps: number;
  step_ms: number;
  rows: number;
  prefill_tokens: number;
  decode_tokens: number;
  running: number;
  waiting: number;
  kv_used: number;
  kv_cached: number;
}

export interface LiveSnapshot {
  number: number;
  at: number;
  engine: EngineSnapshot;
  actors: ActorSnapshot[];
  lanes: LaneSnapshot[];
  kv: KvSnapshot;
  requests: RequestsSnapshot;
  images: ImagesSnapshot | null;
  history: HistoryPoint[];
}
