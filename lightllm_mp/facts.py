"""Facts about the model and the engine that processes find out at their start and every process needs."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import asdict

LONGEST_CUT = 1 << 16
"""Tokens up to which a prompt is accepted and cut, where cutting is allowed; more if `max_input` is larger."""


class PooledFacts(Struct, frozen=True):
    """A model that answers a prompt with one row of numbers instead of tokens."""

    task: Literal["embed", "score"]
    width: int
    """Numbers in a row; 1 for a score."""
    end_token: int = -1
    """Id that prompts end with, appended where it is missing; -1: none."""
    whole_prompts: int = 0
    """Nonzero: a step computes a prompt whole, because its tokens see later tokens. A step then has at most this many
    tokens, unless it has only one prompt. 0: prompts are computed in chunks."""
    shorter: tuple[int, ...] | None = None
    """Lengths to which an embedding may be cut; (): any length; None: it may not be cut."""
    pairs: bool = False
    """A prompt may be a query and a document."""
    raw: bool = False
    """A client gets a score as the number itself, not as its sigmoid."""
    probability: bool = False
    """A score is the log odds of one token against another. Clients see its sigmoid also for a single text, unlike the
    number of a reward model."""


class StateFacts(Struct, frozen=True):
    """A model with recurrent layers (linear attention): a sequence goes on from a position with its state there."""

    checkpoints: int
    """Copies of states that the worker can hold besides the working states of its rows."""
    grain: int
    """Copies are made at multiples of this many tokens."""


class EngineLimits(Struct, frozen=True, array_like=True):
    """The limits of the worker. Sizes are in tokens."""

    kv_tokens: int = 0
    """Total number of KV slots, one per token."""
    rows: int = 0
    """Rows of the worker's tables: the most sequences at once."""
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
    """Tenants share their prompt caches: each reuses the prefixes of others."""
    run_ahead: int = 0
    """Number of steps that are planned before the oldest one is answered."""
    class_bounds: tuple[int, ...] = ()
    """Longest prompt of each rotary length class except the last (models/decoder/length_class.py); empty: one class."""
    pooled: PooledFacts | None = None
    """None: the model generates."""
    window: int = 0
    """Tokens that a token sees, itself included, in every layer, or in the layers of `window_tokens`. 0: all."""
    window_tokens: int = 0
    """Total number of KV slots of the layers with windows, if other layers have no window: then a token has one slot in
    these layers and one of `kv_tokens` in the others. 0: a token has one slot for all layers."""
    states: StateFacts | None = None
    """None: the model has no recurrent layers."""
    whole_images: bool = False
    """A step computes the slots of an image together, because they see each other."""
    long_truncation_mode: str = ""
    """The part that the tokenizer cuts out of too long a prompt: "head" or "center"; empty: the prompt is refused."""
    draft_tokens: int = 0
    """Most draft tokens per sequence and step; 0: no speculative decoding."""

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
        """Most ids of a sequence. The last id is never computed, so it needs no slot. A row of numbers is one id."""
        most = self.max_context + (self.pooled is not None)
        bounded = 0 < self.window_slots <= self.kv_tokens and not self.window_tokens
        return most if bounded else min(most, self.kv_tokens + 1)

    @property
    def window_grain(self) -> int:
        """Number of tokens behind the window that are given up at a time. It is larger where this also walks the path
        through the tree of the layers without a window."""
        return max(1, min(256, self.window // (2 if self.window_tokens else 16)))

    @property
    def window_slots(self) -> int:
        """Most slots that a sequence holds in layers with windows: for the window, for a chunk, and for tokens that
        wait to be given up or to be answered. 0: no bound."""
        return self.window + self.step_tokens * (1 + self.run_ahead) + self.window_grain if self.window else 0

    @property
    def longest_prompt(self) -> int:
        """Most tokens of a prompt that a client may send; it may exceed `max_input` if it is cut. 0: not known yet."""
        return max(self.max_input, LONGEST_CUT) if self.max_input and self.long_truncation_mode else self.max_input

    def rope_class(self, prompt_tokens: int) -> int:
        """The rotary length class of a prompt. The sequence keeps it, however long its answer becomes."""
        return bisect_left(self.class_bounds, prompt_tokens)


class ChatFacts(Struct, frozen=True, array_like=True):
    """How chats are rendered, and how the model writes tool calls and reasoning (names of formats in parsers/)."""

    template: bool = False
    """The model has a chat template."""
    tool_calls: str | None = None
    reasoning: str | None = None
    """None: the model does not reason."""
    special_markers: dict[str, int] = {}
    """Special tokens among the markers of these formats, with their ids. A detokenizer must show them."""
    fill_in_middle: tuple[str, ...] = ()
    """Texts before a prompt, between prompt and suffix, and after the suffix. Empty: no fill-in-the-middle format."""
    thinking: tuple[bool, bool, bool] = (False, False, False)
    """Whether a rendered chat ends inside reasoning: by default, with thinking switched on, and switched off."""
    thought: tuple[bool, bool, bool] = (False, False, False)
    """The same for a chat that ends after reasoning, so that the answer has none."""


class Facts(Struct, frozen=True, array_like=True):
    """All facts. The supervisor merges what the processes find out, and sends it to all actors with Begin."""

    model_name: str = ""
    engine: EngineLimits = EngineLimits()
    eos_ids: tuple[int, ...] = ()
    """End-of-sequence ids from the tokenizer and from the model's configuration."""
    device: str = ""
    dtype: str = ""
    weight_bytes: int = 0
    kv_bytes: int = 0
    state_bytes: int = 0
    """Bytes of recurrent states."""
    has_tokenizer: bool = True
    chat: ChatFacts = ChatFacts()

    def flat(self) -> dict[str, Any]:
        """All facts by name, with the engine's limits among them: the form that users of the API see."""
        own, engine = asdict(self), self.engine
        parts = {"chat": self.chat, "pooled": engine.pooled, "states": engine.states}
        plain = {name: None if part is None else asdict(part) for name, part in parts.items()}
        return {**asdict(own.pop("engine")), **own, **plain}
