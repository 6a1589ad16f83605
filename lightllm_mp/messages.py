"""The messages between actors: every message of the engine, and nothing else.

Rules. Structs are tagged and encoded as msgpack arrays (`array_like`), so fields are only ever added at the end.
Anything that grows with tokens is a column: `bytes` holding little-endian int32 (`ids`), int64 (`rids`) or float32
(`logprobs`), never a list of numbers. `rid` names one sequence: the front counts rids up and never uses one twice
while it lives; a request with n answers uses n consecutive rids. A receiver drops a message about a rid that it does
not know. `actors/topology.py` says which actors talk to each other.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from lightllm_mp.errors import EngineError, InvalidGuide, InvalidRequest, PromptTooLong, Unavailable
from lightllm_mp.facts import Facts


class Wire(Struct, frozen=True, array_like=True, gc=False, tag=True):
    """Base of all messages."""


class ErrorInfo(Struct, frozen=True, array_like=True, gc=False):
    """A typed request error on its way to the client (see errors.py)."""

    status: int
    message: str
    type: str
    code: str
    param: str | None = None

    @staticmethod
    def of(error: EngineError) -> ErrorInfo:
        return ErrorInfo(error.status, error.message, error.type, error.code, error.param)

    def rebuilt(self) -> EngineError:
        """The original error, in the closest class that this process knows."""
        kinds = (PromptTooLong, InvalidGuide, InvalidRequest, Unavailable)
        kind = next((k for k in kinds if k.code == self.code), EngineError)
        error = kind(self.message, param=self.param)
        error.status, error.type, error.code = self.status, self.type, self.code
        return error


# --- parts of a request ---------------------------------------------------------------------------------------------


class ChatPrompt(Struct, frozen=True, array_like=True, gc=False):
    """A conversation; the tokenizer renders it with the model's chat template. Everything is JSON, as templates take
    it."""

    messages: bytes
    """An array of objects with `role` and `content`: text, or parts {"type": "text", "text": ...} and {"type":
    "image"}; an image part for each image of the request, in their order."""
    tools: bytes = b""
    """An array of functions, in OpenAI's form; empty: none."""
    kwargs: bytes = b""
    """The client's own arguments for the template, an object; empty: none."""
    add_generation_prompt: bool = True
    continue_final: bool = False
    """The answer goes on with the last message."""
    template: str = ""
    """The client's own template; empty: the model's."""

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.messages) + len(self.tools) + len(self.kwargs) + len(self.template)


class TextPair(Struct, frozen=True, array_like=True, gc=False):
    """A query and a document, for a model that scores how well they go together."""

    query: str
    document: str

    @property
    def size(self) -> int:
        """Characters."""
        return len(self.query) + len(self.document)


class Sampling(Struct, frozen=True, array_like=True, gc=False):
    """How the next token is chosen. The front validates it; neutral values switch a rule off."""

    seed: int
    """64-bit; noise is a pure function of (seed, position), so a resumed sequence gets the same noise."""
    temperature: float = 0.0
    """0: greedy."""
    top_k: int = 0
    """0: off."""
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    penalize_prompt: bool = False
    """Penalties count the prompt's tokens too, not only produced ones."""
    max_new_tokens: int = 16
    """0: no token is produced, the prompt gets a row of numbers (embeddings and scores)."""
    min_new_tokens: int = 1
    """End-of-sequence and stop ids are masked until this many tokens are produced."""
    ignore_eos: bool = False
    stop_ids: bytes = b""
    """int32 column: ids that end the sequence, in addition to the model's end-of-sequence ids."""
    bias_ids: bytes = b""
    """int32 column of logit_bias."""
    bias_values: bytes = b""
    """float32 column of logit_bias, same length."""
    top_logprobs: int = 0
    """Number of alternatives reported for each produced token (0: only its own logprob)."""
    prompt_logprobs: int = -1
    """-1: none. n >= 0: logprob of each prompt token and its n best alternatives."""
    allowed_ids: bytes = b""
    """int32 column: only these ids are sampled; empty: all. At most 256, as the routes check."""


class Output(Struct, frozen=True, array_like=True, gc=False):
    """How ids become text."""

    stop: tuple[str, ...] = ()
    keep_stop: bool = False
    """Leave the stop string at the end of the text (default: trimmed)."""
    skip_special_tokens: bool | None = None
    """None: as the server's flag says."""
    spaces_between_special_tokens: bool = True
    print_eos_token: bool = False
    prompt_texts: bool = False
    """Prompt logprobs come with the texts of tokens."""


class Guide(Struct, frozen=True, array_like=True, gc=False):
    """What an answer must be: a constraint on its text (guides/)."""

    kind: str
    """json_schema, json_object, regex, choice, lark or gbnf."""
    source: str = ""
    """JSON text of the schema; nothing for json_object; the regex; a JSON list of strings; the grammar."""
    after: str = ""
    """The constraint begins after this text, for example the end of reasoning; what stands before it is free."""
    jump: bool = False
    """Nobody sees logprobs, so ids that the constraint forces need no step of their own: they get logprob 0."""


class Terms(Struct, frozen=True, array_like=True, gc=False):
    """What a request asks for, beside its prompt. A route makes it, and the scheduler gets it unchanged."""

    sampling: Sampling
    output: Output = Output()
    n: int = 1
    """Answers to the prompt; answer i has seed + i."""
    priority: int = 0
    """Higher is served first."""
    reuse_prompt: bool = True
    """May use and feed the prefix cache."""
    tenant: bytes = b""
    """The tenant that sent the request: tenants share the engine fairly."""
    start_by: float = 0.0
    """Deadline for the start of its prefill, monotonic time in seconds; the earliest goes first; 0: none."""
    begun: bool = False
    """The request began before a repair, so `start_by` only orders it."""
    cache_salt: bytes = b""
    """Requests of a tenant reuse each other's prefixes only where this is equal."""
    guide: Guide | None = None
    """What each answer must be; None: anything."""
    task: Literal["generate", "embed", "score"] = "generate"
    """Whether tokens are asked for, or the row of numbers of a model that does this."""
    most_tokens: int = 0
    """A text or document for an embedding or score loses its end beyond so many tokens of the prompt; 0: it is refused
    if it is too long."""
    speculate: bool = True
    """Tokens may be drafted, where the server does so. The answer is the same."""


# --- images -----------------------------------------------------------------------------------------------------------


class ImageInfo(Struct, frozen=True, array_like=True, gc=False):
    """An image, described once by the front from the header of its file."""

    key: bytes
    """32 bytes: content, preprocessing, model and tenant (vision/digest.py)."""
    width: int
    height: int
    """Pixels, as shown."""
    tokens: int
    """Number of embeddings, which is also the number of KV slots in the prompt (vision/sizing.py)."""
    grid: tuple[int, ...] = ()
    """(t, h, w) in patches, for models whose positions depend on them."""
    seconds: tuple[float, ...] = ()
    """A video: the time of each of its t frames; empty: an image."""

    @property
    def frames(self) -> int:
        """Frames, each with its own span in the prompt; 1 for an image."""
        return self.grid[0] if self.grid else 1


class ImageSpan(Struct, frozen=True, array_like=True, gc=False):
    """Positions [start, end) of the prompt take the embeddings of a frame of the image."""

    start: int
    image: ImageInfo
    frame: int = 0
    """Number of the video's frame; an image is its only one."""

    @property
    def tokens(self) -> int:
        return self.image.tokens // self.image.frames

    @property
    def first(self) -> int:
        """The first of the image's embeddings that stands here."""
        return self.frame * self.tokens

    @property
    def end(self) -> int:
        return self.start + self.tokens


class RawImage(Struct, frozen=True, array_like=True, gc=False):
    """An image's file, in the sender's arena."""

    image: ImageInfo
    offset: int
    length: int
    generation: int


class Encode(Wire, tag="Encode"):
    """Front -> visual, beside Generate: the images of a request in order; an image may occur twice."""

    rid: int
    images: tuple[RawImage, ...]


class ImageBlock(Struct, frozen=True, array_like=True, gc=False):
    """An image's embeddings: `rows` rows in the language model's dtype at `offset` (bytes) of the visual arena."""

    key: bytes
    offset: int
    rows: int
    generation: int


class Embedded(Wire, tag="Embedded"):
    """Visual -> router: the embeddings of all images of the request are ready, and stay until Release."""

    rid: int
    images: tuple[ImageBlock, ...]


class Release(Wire, tag="Release"):
    """Router -> visual: no sequence reads the images of this request any more."""

    rid: int


class ImageFailed(Wire, tag="ImageFailed"):
    """Visual -> router and front: an image of the request cannot be used; the front answers, the router forgets."""

    rid: int
    error: ErrorInfo


# --- front -> tokenizer -> router -------------------------------------------------------------------------------------


class Generate(Wire, tag="Generate"):
    """A request. Exactly one of text, ids, chat, pair is given."""

    rid: int
    terms: Terms
    text: str | None = None
    ids: bytes | None = None
    chat: ChatPrompt | None = None
    add_special_tokens: bool = True
    emitted: bytes = b""
    """int32 column: produced ids that the front has already passed on (only with n = 1)."""
    images: tuple[ImageInfo, ...] = ()
    pair: TextPair | None = None


class Count(Wire, tag="Count"):
    """Asks for the number of tokens of a text, or of a chat if there is one. Counted or Rejected answers it."""

    rid: int
    text: str
    add_special_tokens: bool = True
    images: tuple[ImageInfo, ...] = ()
    chat: ChatPrompt | None = None
    listed: bool = False
    """The ids are wanted too; only without images."""


class Counted(Wire, tag="Counted"):
    rid: int
    tokens: int
    ids: bytes = b""
    """int32 column, where they are wanted."""


class Detokenize(Wire, tag="Detokenize"):
    """Asks for the text of ids (int32 column). Detokenized or Rejected answers it."""

    rid: int
    ids: bytes
    skip_special_tokens: bool = False


class Detokenized(Wire, tag="Detokenized"):
    rid: int
    text: str


class Tokenized(Wire, tag="Tokenized"):
    """A request as the router sees it: `ids` = prompt (`prompt_tokens` of them) followed by the emitted ids."""

    rid: int
    terms: Terms
    ids: bytes
    prompt_tokens: int
    spans: tuple[ImageSpan, ...] = ()


class Abort(Wire, tag="Abort"):
    """The client is gone. The front sends it to the router and once more through the tokenizer, so that it is neither
    late nor ahead of the request that it ends; for a request with images also through visual, after its Embedded."""

    rid: int


class Scheduled(Wire, tag="Scheduled"):
    """Router -> front: the sequence has left the queue; its prefill begins. For a trace it says when the parts of its
    request came to the router, and when it planned the first step (monotonic, seconds); 0: it had none, or nobody
    traces."""

    rid: int
    tokenized: float = 0.0
    embedded: float = 0.0
    compiled: float = 0.0
    planned: float = 0.0


class Rejected(Wire, tag="Rejected"):
    """A request error, the only or last answer to rid and the n - 1 rids after it."""

    rid: int
    error: ErrorInfo


# --- router <-> guide -> worker ---------------------------------------------------------------------------------------


class OpenGuide(Wire, tag="OpenGuide"):
    """Router -> guide: the n answers of a request are constrained. GuideReady or Rejected answers it."""

    rid: int
    guide: Guide
    n: int = 1
    ignore_eos: bool = False
    """An answer ends only where it cannot go on."""
    emitted: bytes = b""
    """int32 column: ids that the answer has already (only with n = 1)."""


class GuideReady(Wire, tag="GuideReady"):
    """Guide -> router: the constraint is compiled; the request may start."""

    rid: int


class Advance(Wire, tag="Advance"):
    """Router -> guide: constrained answers go on with these ids. An answer that took forced ids comes several times."""

    rids: bytes
    ids: bytes


class Forced(Wire, tag="Forced"):
    """Guide -> router: the answer goes on with these ids, because nothing else is allowed."""

    rid: int
    count: int
    """Number of ids that the answer has before them."""
    ids: bytes


class NeedMasks(Wire, tag="NeedMasks"):
    """Router -> guide: the step samples these constrained answers, in this order."""

    step: int
    rids: bytes
    counts: bytes
    """int32 column: number of ids that each answer has before the one that is sampled."""


class Masks(Wire, tag="Masks"):
    """Guide -> worker 0: which ids the step may sample. Other ranks get rank 0's ids, so they need no masks."""

    step: int
    bits: bytes
    """uint32 [constrained answers, ceil(vocab_size / 32)], the lowest bit first."""


class CloseGuide(Wire, tag="CloseGuide"):
    """Router -> guide: this answer has ended."""

    rid: int


# --- router -> detokenizer -> front -----------------------------------------------------------------------------------

RUNNING, STOP, LENGTH, ABORT = range(4)
"""Values of a `finish` column: still running; end-of-sequence, stop id or string; token limit; ended by the engine."""

FINISH_REASONS = (None, "stop", "length", "abort")


class Open(Wire, tag="Open"):
    """A sequence starts or resumes: what the detokenizer needs before its first token."""

    rid: int
    output: Output
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that came from the prefix cache."""
    prompt_tail: bytes
    """int32 column: the last few prompt ids, context for decoding the first ones."""
    emitted: bytes = b""


class Tokens(Wire, tag="Tokens"):
    """The tokens that one step produced; columns have one entry per sequence."""

    rids: bytes
    ids: bytes
    logprobs: bytes
    finish: bytes
    """uint8 column of finish reasons."""
    top: tuple[tuple[int, bytes, bytes], ...] = ()
    """(index into the columns, int32 ids, float32 logprobs) for sequences that asked for alternatives."""


class PromptLogprobs(Wire, tag="PromptLogprobs"):
    """Logprobs of a prompt's tokens, in pieces that fit any lane. Router -> detokenizer -> front, before the first
    token."""

    rid: int
    ids: bytes
    """int32: a piece of the prompt."""
    logprobs: bytes
    """float32 of the piece's tokens; the prompt's first token has none."""
    top_n: int
    top_ids: bytes = b""
    """int32 [len(logprobs), top_n]"""
    top_logprobs: bytes = b""
    more: bool = False
    """Another piece follows."""
    texts: tuple[str, ...] = ()
    """The tokens' texts, where they are wanted; joined they are the prompt's text."""
    top_texts: tuple[str, ...] = ()
    """The alternatives' texts, in the order of `top_ids`."""


class Pooled(Wire, tag="Pooled"):
    """Router -> front: the row of numbers (an embedding, or a score) that answers a prompt, the only answer to rid."""

    rid: int
    row: bytes
    """float32 column."""
    prompt_tokens: int
    cached_tokens: int = 0


class Close(Wire, tag="Close"):
    """Router -> detokenizer: forget this sequence, no client waits for it."""

    rid: int


class StopMatched(Wire, tag="StopMatched"):
    """Detokenizer -> router: the text ended at a stop string; free the sequence."""

    rid: int


class Texts(Wire, tag="Texts"):
    """One event per token, for many sequences at once. A finished entry is the last one of its rid."""

    rids: bytes
    ids: bytes
    logprobs: bytes
    counts: bytes
    """int32: number of tokens that the sequence has produced, this one included."""
    prompt_tokens: bytes
    cached_tokens: bytes
    special: bytes
    """uint8: 1 for special tokens."""
    finish: bytes
    texts: tuple[str, ...] = ()
    top: tuple[tuple[int, bytes, bytes], ...] = ()
    top_texts: tuple[tuple[str, ...], ...] = ()
    """The decoded alternatives, beside `top`."""
    begun: float = 0.0
    """When the detokenizer began with them, for traces (monotonic, seconds); 0: nobody traces."""


# --- router <-> worker (the plan itself is raw bytes, see plan.py) ---------------------------------------------


class StepDone(Wire, tag="StepDone"):
    """Rank 0's answer to a plan: one entry per sampled sequence, in plan order."""

    step: int
    ids: bytes
    logprobs: bytes
    """float32 column; NaN: the sequence's logits are not finite; minus infinity: its mask and its rules together allow
    no id. Then its id means nothing."""
    top: tuple[tuple[int, bytes, bytes], ...] = ()
    """(sample index, int32 ids, float32 logprobs)"""
    prompt: tuple[tuple[int, bytes, bytes, bytes], ...] = ()
    """(sequence index, float32 logprobs of the chunk's next tokens (NaN as for `logprobs`), int32 top ids, float32 top
    logprobs)"""
    seconds: float = 0.0
    """Time the step took on the worker."""
    pooled: bytes = b""
    """float32 column: the rows of the pooled sequences, in plan order and of equal width; NaN as for `logprobs`."""


# --- what the actors do now, told only while somebody watches ---------------------------------------------------------


class Inspect(Wire, tag="Inspect"):
    """Front -> supervisor, router and visual: say what you do now. EngineState, SchedulerState and ImageCacheState
    answer it. It and its answers are lost where a lane is full."""

    rids: bytes = b""
    """int64 column: the sequences that the front shows, at most MOST_SHOWN."""


MOST_SHOWN = 200
"""Sequences, and images, that are shown one by one; the rest is counted. An index of one, and `OTHERS`, fit a byte."""
OTHERS = 255

UNKNOWN, IMAGES, COMPILING, QUEUED, PREFILL, DECODE = range(6)
"""Values of a `stages` column: the router does not have the sequence (yet); its images are not encoded yet; its guide
is not compiled yet; it waits for admission; its prompt is being computed; its answer is."""


class SchedulerState(Wire, tag="SchedulerState"):
    """Router -> front. Columns up to `cached` have one entry per sequence of `rids`, those after `cell_slots` one per
    cell: a cell is `cell_slots` neighbouring KV slots (the last may have fewer)."""

    rids: bytes
    """As in Inspect."""
    stages: bytes
    """uint8."""
    prompts: bytes
    """int32: tokens of the prompt; 0: not known."""
    computed: bytes
    """int32: positions whose KV is computed."""
    cached: bytes
    """int32: positions that came from the prefix tree."""
    cell_slots: int
    running: bytes
    """uint8: percent of the cell's slots that running sequences hold, rounded up."""
    kept: bytes
    """uint8: percent that only the prefix tree holds, rounded up."""
    owners: bytes
    """uint8: 1 + index in `rids` of a sequence that holds slots here; OTHERS: of one that is not shown; 0: none."""
    tree_tokens: int
    """Tokens in the prefix tree."""
    tree_nodes: int


class ImageState(Struct, frozen=True, array_like=True, gc=False):
    """An image in the cache."""

    key: bytes
    """The first bytes of its key."""
    tokens: int
    size: int
    ready: bool
    """False: it is being encoded."""
    leases: int
    """Requests that hold it."""
    age: float
    """Seconds since it was asked for first."""


class ImageCacheState(Wire, tag="ImageCacheState"):
    """Visual -> front."""

    items: int
    capacity: int
    """Most images."""
    size: int
    most_size: int
    leased: int
    """Images that a request holds."""
    waiting: int
    """Requests that wait for room."""
    working: int
    """Images that are being decoded or encoded, or wait for it."""
    images: tuple[ImageState, ...] = ()
    """The newest, at most MOST_SHOWN."""


ActorCondition = Literal["starting", "ready", "resetting", "silent", "killed", "pausing", "stopping", "down", "away"]


class ActorState(Struct, frozen=True, array_like=True, gc=False):
    """A process as the supervisor sees it."""

    name: str
    state: ActorCondition
    """`silent`: it does not answer a ping; `killed`: it is being ended; `pausing`: it is started again soon; `away`:
    its restart budget is spent, so requests that need it are refused until it is ready."""
    pid: int = 0
    """0: there is no process."""
    age: float = 0.0
    """Seconds since the process was started."""
    restarts: int = 0
    died: str = ""
    """How its last process ended."""
    doing: str = ""
    """The stage of its start."""
    done: int = 0
    """Bytes of that stage that are done, of `total`; 0 of 0: it has no bytes."""
    total: int = 0
    wait: float = 0.0
    """Seconds of silence, or until the next start."""
    cpu_seconds: float = 0.0
    """CPU time of the process."""
    memory: int = 0
    """Bytes of memory of its own."""
    shared: int = 0
    """Bytes of shared memory and files that it has touched."""


class LaneState(Struct, frozen=True, array_like=True, gc=False):
    """A lane between two actors; counts are since the start of the server."""

    source: str
    target: str
    waiting: int
    """Bytes that wait."""
    capacity: int
    messages: int
    refusals: int
    """How often it was full."""


ServerState = Literal["starting", "running", "repairing", "stopping"]


class EngineState(Wire, tag="EngineState"):
    """Supervisor -> front."""

    state: ServerState
    epoch: int
    seconds: float
    """Time since the server, or the last repair, began."""
    actors: tuple[ActorState, ...]
    lanes: tuple[LaneState, ...]


# --- supervisor <-> all actors ----------------------------------------------------------------------------------------


class Ready(Wire, tag="Ready"):
    facts: Facts


class Failed(Wire, tag="Failed"):
    """The process cannot start and exits after this message. `reason`: one line for the operator."""

    reason: str


class Loading(Wire, tag="Loading"):
    """Progress of a long start: bytes `done` of `total`, or the stage that begins if `total` is 0."""

    what: str
    done: int = 0
    total: int = 0


class Reset(Wire, tag="Reset"):
    """A process died: do not touch the data lanes, drop request state, keep what is expensive, answer ResetDone."""

    epoch: int


class ResetDone(Wire, tag="ResetDone"):
    epoch: int


class Begin(Wire, tag="Begin"):
    """All lanes are fresh and all actors are ready: start work. `restarted`: processes that lost their memory."""

    epoch: int
    facts: Facts
    restarted: tuple[str, ...] = ()


class Health(Wire, tag="Health"):
    """Supervisor -> front: ok, or the reason why not. `draining`: finish live requests, refuse new ones."""

    ok: bool
    reason: str = ""
    draining: bool = False
    away: tuple[str, ...] = ()
    """Dispensable actors that fail again and again: refuse requests that need them, and serve the others."""


class Blamed(Wire, tag="Blamed"):
    """Front -> supervisor: a request may be to blame for the death of `name` that made the repair to this epoch."""

    name: str
    epoch: int


class Drained(Wire, tag="Drained"):
    """Front -> supervisor: draining has begun and no live request is left."""


class Ping(Wire, tag="Ping"):
    number: int


class Pong(Wire, tag="Pong"):
    number: int


class Stop(Wire, tag="Stop"):
    """Leave the loop, close all resources, exit with 0."""


Message = (
    Generate
    | Count
    | Counted
    | Detokenize
    | Detokenized
    | Tokenized
    | Encode
    | Embedded
    | Release
    | ImageFailed
    | Abort
    | OpenGuide
    | GuideReady
    | Advance
    | Forced
    | NeedMasks
    | Masks
    | CloseGuide
    | Scheduled
    | Rejected
    | Open
    | Tokens
    | PromptLogprobs
    | Pooled
    | Close
    | StopMatched
    | Texts
    | StepDone
    | Inspect
    | SchedulerState
    | ImageCacheState
    | EngineState
    | Ready
    | Failed
    | Loading
    | Reset
    | ResetDone
    | Begin
    | Health
    | Blamed
    | Drained
    | Ping
    | Pong
    | Stop
)
