"""What the processes find out about the model and the engine at their start, and everybody needs to know."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import asdict

LONGEST_CUT = 1 << 16
"""Tokens of the longest prompt that is cut where cutting is allowed, however short the longest possible one is."""


class PooledFacts(Struct, frozen=True):
    """A model that answers a prompt with one row of numbers in place of tokens."""

    task: Literal["embed", "score"]
    width: int
    """Numbers of a row; 1 for a score."""
    end_token: int = -1
    """Id that the prompt ends with; it is appended where it is missing; -1: none."""
    whole_prompts: int = 0
    """A prompt is computed in one step, because its tokens see those after them; 0: in chunks. A step has at most so
    many tokens, unless it has one prompt alone."""
    shorter: tuple[int, ...] | None = None
    """Lengths to which an embedding may be cut; (): any; None: it may not."""
    pairs: bool = False
    """A prompt may be a query and a document."""
    raw: bool = False
    """A score for clients is the number itself, and not its sigmoid."""
    probability: bool = False
    """A score is the log odds of one token against another: of a single text too clients see its sigmoid, and not the
    number as of a reward model."""


class StateFacts(Struct, frozen=True):
    """A model with recurrent layers (linear attention): a sequence goes on from a position with its state there."""

    checkpoints: int
    """Copies of states that the worker can hold beside the working states of its rows."""
    grain: int
    """Copies are made at multiples of so many tokens."""


class EngineLimits(Struct, frozen=True, array_like=True):
    """The limits of the worker: sizes in tokens."""

    kv_tokens: int = 0
    """KV slots in total, one per token."""
    rows: int = 0
    """Rows of the worker's tables: most sequences at once."""
    max_context: int = 0
    """Most tokens of a prompt and its answer together."""
    max_input: int = 0
    """Longest prompt."""
    step_tokens: int = 0
    """Most tokens that one step computes."""
    vocab_size: int = 0
    eos_ids: tuple[int, ...] = ()
    """Ids that end a sequence."""
    prompt_cache: bool = True
    share_prompt_cache: bool = False
    """Tenants reuse each other's prefixes."""
    run_ahead: int = 0
    """Number of steps that are planned before the oldest one is answered."""
    class_bounds: tuple[int, ...] = ()
    """Longest prompt of each rotary length class but the last (models/decoder/length_class.py); empty: one class."""
    pooled: PooledFacts | None = None
    """None: the model generates."""
    window: int = 0
    """A token sees so many, itself included, in every layer, or in those that have `window_tokens`; 0: all."""
    window_tokens: int = 0
    """KV slots in total of the layers with windows, where other layers have none: a token has one slot in these layers
    and one of `kv_tokens` in the others. 0: it has one slot for all layers."""
    states: StateFacts | None = None
    """None: the model has no recurrent layers."""
    whole_images: bool = False
    """A step computes the slots of an image together, because they see each other."""
    long_truncation_mode: str = ""
    """Which part of a prompt that is too long the tokenizer cuts out: "head" or "center"; empty: it is refused."""
    draft_tokens: int = 0
    """Most draft tokens of a sequence in a step; 0: no speculative decoding."""

    @property
    def task(self) -> str:
        """`generate`, `embed` or `score`."""
        return "generate" if self.pooled is None else self.pooled.task

    @property
    def running(self) -> int:
        """Most running sequences: a step has at least one token for each of them."""
        return min(self.rows, self.step_tokens)

    @property
    def width(self) -> int:
        """Most ids of one sequence. The last id is never computed, so it needs no slot; a row of numbers counts as
        one."""
        most = self.max_context + (self.pooled is not None)
        bounded = 0 < self.window_slots <= self.kv_tokens and not self.window_tokens
        return most if bounded else min(most, self.kv_tokens + 1)

    @property
    def window_grain(self) -> int:
        """So many tokens behind the window are given up at a time: more where each time the way through the layers
        without a window is walked, too."""
        return max(1, min(256, self.window // (2 if self.window_tokens else 16)))

    @property
    def window_slots(self) -> int:
        """Most slots that a sequence holds in layers with windows: of the window, of a chunk, and of tokens that wait
        to be given up or to be answered. 0: there is no bound."""
        return self.window + self.step_tokens * (1 + self.run_ahead) + self.window_grain if self.window else 0

    @property
    def longest_prompt(self) -> int:
        """Most tokens of a prompt that a client may send, for it may be cut; 0: not known yet."""
        return max(self.max_input, LONGEST_CUT) if self.max_input and self.long_truncation_mode else self.max_input

    def rope_class(self, prompt_tokens: int) -> int:
        """The rotary length class of a prompt. The sequence keeps it, however long its answer becomes."""
        return bisect_left(self.class_bounds, prompt_tokens)


class ChatFacts(Struct, frozen=True, array_like=True):
    """How the model is asked in chats, and how it writes tool calls and reasoning (names of formats in parsers/)."""

    template: bool = False
    """It has a chat template."""
    tool_calls: str | None = None
    reasoning: str | None = None
    """None: it does not reason."""
    special_markers: dict[str, int] = {}
    """Markers of these formats that are special tokens, with their ids: a detokenizer must show them."""
    fill_in_middle: tuple[str, ...] = ()
    """What stands before a prompt, between it and its suffix, and after the suffix; empty: it has no such form."""
    thinking: tuple[bool, bool, bool] = (False, False, False)
    """Whether a rendered chat ends within reasoning: by default, with thinking switched on, and switched off."""
    thought: tuple[bool, bool, bool] = (False, False, False)
    """The same, for a chat that ends behind reasoning, so that the answer has none."""


class Facts(Struct, frozen=True, array_like=True):
    """What the processes find out at their start; the supervisor merges it and sends it to all actors with Begin."""

    model_name: str = ""
    engine: EngineLimits = EngineLimits()
    eos_ids: tuple[int, ...] = ()
    """End-of-sequence ids of the tokenizer and the model's configuration together."""
    device: str = ""
    dtype: str = ""
    weight_bytes: int = 0
    kv_bytes: int = 0
    state_bytes: int = 0
    """Of recurrent states."""
    has_tokenizer: bool = True
    chat: ChatFacts = ChatFacts()

    def flat(self) -> dict[str, Any]:
        """Everything by name, the engine's limits among it: what users of the API see."""
        own, engine = asdict(self), self.engine
        parts = {"chat": self.chat, "pooled": engine.pooled, "states": engine.states}
        plain = {name: None if part is None else asdict(part) for name, part in parts.items()}
        return {**asdict(own.pop("engine")), **own, **plain}
