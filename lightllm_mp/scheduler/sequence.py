"""A sequence: the state of one answer, from the waiting queue to its last token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lightllm_mp.facts import EngineLimits
from lightllm_mp.messages import Embedded, ImageSpan, Open, Sampling, Terms, Tokenized
from lightllm_mp.plan import Ints
from lightllm_mp.scheduler.limits import fit, masked_ids, with_end_token
from lightllm_mp.scheduler.output_lengths import SAMPLES
from lightllm_mp.scheduler.prefix_tree import PrefixNode
from lightllm_mp.scheduler.prompt_images import PromptImages, prompt_images
from lightllm_mp.scheduler.prompt_logprobs import OwedLogprobs
from lightllm_mp.scheduler.speculation.ngram_index import NgramIndex

TAIL = 16
"""How many of the last prompt ids the detokenizer gets as context."""


@dataclass(slots=True, eq=False)
class SequenceGroup:
    """The n answers to one prompt: one of them computes the prompt, the others wait until the prefix tree has it."""

    leader: Sequence | None = None
    ready: bool = False


@dataclass(slots=True, eq=False)
class StartDeadline:
    """The time by which a request has to begin; its sequences share it."""

    by: float = math.inf
    """Monotonic time in seconds."""
    begun: bool = False
    """One of the request's sequences has begun, so the others may begin late."""


@dataclass(slots=True, eq=False)
class Sequence:
    rid: int
    arrival: int
    """Number in order of arrival. A preempted sequence keeps it."""
    terms: Terms
    """The request's terms with the seed and the token limit of this sequence."""
    ids: Ints
    """Prompt ids and produced ids, as known when the sequence began to wait."""
    prompt_tokens: int
    limit: int
    """Most ids, prompt included: the sequence ends there at the latest."""
    cached: bool
    """The sequence reads and feeds the prefix tree."""
    draws: NDArray[np.float64]
    """float64 [SAMPLES] in 0..1: the quantile of output lengths at which this sequence is predicted to end."""
    group: SequenceGroup | None = None
    stop_ids: frozenset[int] = frozenset()
    masked_ids: tuple[int, ...] = ()
    opened: bool = False
    """The detokenizer knows the sequence; for a pooled one, the front does."""
    row: int = -1
    nodes: tuple[PrefixNode, ...] = ()
    """Last node, locked, of the prefix that is shared with the tree of each KV space. Empty: no prefix is shared."""
    tree_version: int = -1
    """Sum of `PrefixTree.version` over the trees when the prefix was last looked up."""
    known: int = 0
    """Length of the prefix that the trees had then."""
    saves: dict[int, int] = field(default_factory=dict)
    """Copies of its recurrent state that the tree does not have yet: number -> position."""
    uploaded: int = 0
    """Number of leading ids that the worker has; 0: the worker does not know the row."""
    owed_logprobs: OwedLogprobs | None = None
    """Prompt logprobs that the client asked for and that are not sent yet."""
    rope_class: int = 0
    """Rotary length class of the prompt; a sequence that resumes with more ids keeps it."""
    images: PromptImages | None = None
    index: NgramIndex | None = None
    """N-gram index of its ids; made when the sequence is first worth a draft."""
    due: StartDeadline = field(default_factory=StartDeadline)
    tenant: int = 0
    cache_owner: bytes = b""
    """The tenant, where each tenant has a prefix cache of its own."""

    @property
    def node(self) -> PrefixNode | None:
        """The prefix node of the first space."""
        return self.nodes[0] if self.nodes else None

    @property
    def sampling(self) -> Sampling:
        return self.terms.sampling

    @property
    def priority(self) -> int:
        return self.terms.priority

    @property
    def order(self) -> tuple[int, float, int]:
        """Service order: higher priority, then the earlier deadline, then arrival."""
        return (-self.priority, self.due.by, self.arrival)

    def expired(self, now: float) -> bool:
        """Whether its deadline passed before it began. The front then tells the client and aborts it."""
        return now > self.due.by and not self.due.begun

    @property
    def waits_for_leader(self) -> bool:
        return self.group is not None and not self.group.ready and self.group.leader is not None

    @property
    def namespace(self) -> tuple[int, bytes]:
        """Sequences share prefixes only within a namespace. Keys differ between length classes, and a tenant must not
        learn what another tenant has asked."""
        return self.rope_class, self.cache_owner

    @property
    def spans(self) -> tuple[ImageSpan, ...]:
        """Positions of images; their ids lie outside the vocabulary."""
        return self.images.spans if self.images is not None else ()

    @property
    def pooled(self) -> bool:
        """The prompt gets a row of numbers and no answer."""
        return self.sampling.max_new_tokens == 0

    @property
    def guided(self) -> bool:
        """The answer is constrained: the guide actor knows it and makes a mask for each of its tokens."""
        return self.terms.guide is not None

    @property
    def reads_cache(self) -> bool:
        """False while prompt logprobs are owed, because these need the whole prompt computed."""
        return self.cached and self.owed_logprobs is None

    def open(self, cached_tokens: int) -> Open:
        prompt, emitted = self.ids[: self.prompt_tokens], self.ids[self.prompt_tokens :]
        return Open(
            rid=self.rid,
            output=self.terms.output,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=min(cached_tokens, self.prompt_tokens),
            prompt_tail=prompt[max(self.spans[-1].end if self.spans else 0, len(prompt) - TAIL) :].tobytes(),
            emitted=emitted.tobytes(),
        )

    def logprobs_sent(self) -> None:
        """The prompt logprobs are sent. Do not ask the worker for them again."""
        self.owed_logprobs = None
        self.terms = replace(self.terms, sampling=replace(self.sampling, prompt_logprobs=-1))


def sequences_of(
    request: Tokenized,
    limits: EngineLimits,
    arrival: int,
    random: np.random.Generator,
    embedded: Embedded | None = None,
) -> list[Sequence]:
    """The n sequences of a request (see `fit` and `prompt_images` for errors)."""
    if limits.pooled is not None:
        request = with_end_token(request, limits.pooled)
    ids, max_new = fit(request, limits)
    resumed = len(ids) > request.prompt_tokens
    terms = request.terms
    sampling = replace(terms.sampling, max_new_tokens=max_new)
    if resumed:
        sampling = replace(sampling, prompt_logprobs=-1)
    stop_ids = tuple(np.frombuffer(sampling.stop_ids, "<i4").tolist())
    cached = terms.reuse_prompt and limits.prompt_cache
    owed = sampling.prompt_logprobs >= 0
    images = prompt_images(request, embedded)
    group = SequenceGroup() if terms.n > 1 and cached and not owed else None
    due = StartDeadline(terms.start_by or math.inf, terms.begun)
    return [
        Sequence(
            rid=request.rid + index,
            arrival=arrival + index,
            terms=replace(terms, sampling=replace(sampling, seed=sampling.seed + index)),
            ids=ids,
            prompt_tokens=request.prompt_tokens,
            limit=request.prompt_tokens + max(max_new, 1),
            cached=cached,
            draws=random.random(SAMPLES),
            group=group,
            stop_ids=frozenset(stop_ids),
            masked_ids=masked_ids(sampling, limits),
            owed_logprobs=OwedLogprobs(request.prompt_tokens - 1, sampling.prompt_logprobs) if owed else None,
            rope_class=limits.rope_class(request.prompt_tokens),
            images=images,
            due=due,
            cache_owner=(b"" if limits.share_prompt_cache else terms.tenant) + terms.cache_salt,
        )
        for index in range(terms.n)
    ]
