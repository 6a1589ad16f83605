"""The events of GET /live/events: each is one `LiveSnapshot`. Times are in seconds and sizes in bytes, unless said."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from lightllm_mp.messages import ActorCondition, ServerState


class EngineSnapshot(Struct, frozen=True):
    state: ServerState
    trouble: str
    """Why the server does not serve now; empty if it does."""
    draining: bool
    epoch: int
    """Grows with each repair."""
    seconds: float
    """Since the start, or since the last repair began."""
    model_name: str
    viewers: int
    """Clients of this route."""


class ActorSnapshot(Struct, frozen=True):
    """A process. `away`: its restart budget is spent, and requests that need it fail; `silent`: it does not answer."""

    name: str
    state: ActorCondition
    pid: int
    """0: there is no process."""
    age: float
    """Since the process was started."""
    restarts: int
    died: str
    """How its last process ended; empty: this is the first."""
    doing: str
    """The stage of its start."""
    done: int
    """Bytes of this stage that are done, of `total`; 0 of 0: the stage is not measured in bytes."""
    total: int
    wait: float
    """Seconds of silence, or until the next start."""
    cpu_seconds: float
    """CPU time that the process has used."""
    memory: int
    """Resident, its own."""
    shared: int
    """Resident, shared with others, and files."""


class LaneSnapshot(Struct, frozen=True):
    """A queue from one actor to another; counts are since the server's start."""

    source: str
    target: str
    waiting: int
    """Bytes that the receiver has not taken yet."""
    capacity: int
    messages: int
    refusals: int
    """How often it was full."""


class KvSnapshot(Struct, frozen=True):
    """KV memory. The columns `running`, `kept` and `owners` are base64 of one byte a cell, and a cell is `cell_slots`
    neighbouring slots; they are empty while the router does not answer."""

    total: int
    """Slots, one a token."""
    used: int
    """Held by running sequences; a shared slot counts once."""
    cached: int
    """Held by the prefix tree alone."""
    tree_tokens: int
    tree_nodes: int
    cell_slots: int
    running: bytes
    """Percent of a cell's slots that running sequences hold."""
    kept: bytes
    """Percent that only the prefix tree holds."""
    states: int
    """Copies of recurrent states in use, of models with linear attention."""
    states_total: int
    """Most such copies; 0: the model has no recurrent layers, or keeps none."""
    windows: int
    """Slots that running sequences hold in layers with windows, where these have slots of their own."""
    windows_total: int
    """Such slots in all; 0: all layers share theirs."""
    owners: bytes
    """1 + index in `requests.rows` of an answer that holds slots of the cell; 255: one that is not listed; 0: none."""


SequenceStage = Literal[
    "repair", "quarantine", "tokenizing", "images", "constraint", "queued", "prefill", "decode", "delivering"
]


class SequenceSnapshot(Struct, frozen=True):
    """One answer of a request; the list begins with the oldest."""

    rid: str
    """Decimal; JavaScript has no integers of 62 bits."""
    index: int
    """Which of the request's answers."""
    label: str
    """A hash of its X-Request-Id."""
    client: str
    """The holder of its key, as in the access log; empty without keys."""
    task: Literal["generate", "embed", "score"]
    stage: SequenceStage
    """`repair`: it is submitted again after the repair; `quarantine`: it waits for another request that may have ended
    a process; `delivering`: it is complete, and its client reads."""
    prompt: int
    """Tokens of its prompt; 0: not known yet."""
    cached: int
    """Of these from the prefix cache."""
    computed: int
    """Positions of prompt and answer that are computed."""
    produced: int
    """Tokens of its answer."""
    most: int
    """Tokens that it may produce."""
    images: int
    constrained: bool
    age: float
    queued: float | None
    """Until its prefill began."""
    first: float | None
    """Until its first token."""


class RequestsSnapshot(Struct, frozen=True):
    live: int
    """Requests that are accepted and not completely answered, including those that still arrive."""
    most_live: int
    retained: int
    """Answers that are kept for clients that may come back."""
    running: int
    """Sequences that have a row of the worker."""
    waiting: int
    """Sequences that wait for admission."""
    rows: list[SequenceSnapshot]
    """At most 200."""
    more: int
    """Answers beyond those."""


class ImageSnapshot(Struct, frozen=True):
    key: str
    """The first bytes of its key, hexadecimal."""
    tokens: int
    size: int
    ready: bool
    """False: it is being encoded."""
    leases: int
    """Requests that hold it."""
    age: float


class ImagesSnapshot(Struct, frozen=True):
    items: int
    capacity: int
    """Most images."""
    size: int
    most_size: int
    leased: int
    waiting: int
    """Requests that wait for room."""
    working: int
    """Images that are being decoded or encoded, or wait for it."""
    rows: list[ImageSnapshot]
    """At most 200, the newest first."""
    more: int


class HistoryPoint(Struct, frozen=True):
    """One second."""

    at: float
    """Its end, since 1970."""
    generated: float
    """Produced tokens a second."""
    prompt: float
    """Computed prompt tokens a second."""
    steps: float
    """A second."""
    step_ms: float
    """Mean time of a step on the worker."""
    rows: float
    """Mean number of sequences of a step."""
    prefill_tokens: float
    """Mean of a step."""
    decode_tokens: float
    running: int
    waiting: int
    kv_used: int
    kv_cached: int


class LiveSnapshot(Struct, frozen=True):
    """What the whole engine does at one moment."""

    number: int
    at: float
    """Since 1970."""
    engine: EngineSnapshot
    actors: list[ActorSnapshot]
    lanes: list[LaneSnapshot]
    kv: KvSnapshot
    requests: RequestsSnapshot
    images: ImagesSnapshot | None
    """Null: the server takes no images, or the visual actor does not answer."""
    history: list[HistoryPoint]
    """The last minutes in the first event, the last seconds in others; join them by `at`."""
