"""A sequence: one answer in the making, from the waiting queue to its last token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lightllm_mp.messages import Embedded, EngineLimits, ImageSpan, Open, Sampling, Terms, Tokenized
from lightllm_mp.plan import Ints
from lightllm_mp.scheduler.limits import fit, to_score
from lightllm_mp.scheduler.output_lengths import SAMPLES
from lightllm_mp.scheduler.prefix_tree import PrefixNode
from lightllm_mp.scheduler.prompt_images import PromptImages, prompt_images
from lightllm_mp.scheduler.prompt_logprobs import OwedLogprobs

TAIL = 16
"""Prompt ids that the detokenizer gets as context."""


@dataclass(slots=True, eq=False)
class SequenceGroup:
    """The n answers to one prompt: one of them computes the prompt, the others wait until the prefix tree has it."""

    leader: Sequence | None = None
    ready: bool = False


@dataclass(slots=True, eq=False)
class StartDeadline:
    """When a request has to begin, shared by its sequences."""

    by: float = math.inf
    """Monotonic time in seconds."""
    begun: bool = False
    """One of its sequences has begun, so the others may be late."""


@dataclass(slots=True, eq=False)
class Sequence:
    rid: int
    arrival: int
    """Counts all sequences; it is kept when the sequence is preempted."""
    terms: Terms
    """As the request's, but with the seed and the token limit of this sequence."""
    ids: Ints
    """Prompt and produced ids, as known when the sequence began to wait."""
    prompt_tokens: int
    limit: int
    """It ends with this many ids at the latest."""
    cached: bool
    """Reads and feeds the prefix tree."""
    draws: NDArray[np.float64]
    """In 0..1: where among the output lengths to come this sequence is taken to lie, once per sample."""
    group: SequenceGroup | None = None
    stop_ids: frozenset[int] = frozenset()
    masked_ids: tuple[int, ...] = ()
    opened: bool = False
    """The detokenizer knows it."""
    row: int = -1
    node: PrefixNode | None = None
    """Locked end of the prefix it shares with the tree."""
    tree_version: int = -1
    """What the tree was when `node` was last looked up."""
    uploaded: int = 0
    """Leading ids that the worker has; 0: it does not know the row."""
    owed_logprobs: OwedLogprobs | None = None
    """Prompt logprobs that are still owed."""
    rope_class: int = 0
    """Rotary length class: that of the prompt, also when it is resumed with more ids."""
    images: PromptImages | None = None
    due: StartDeadline = field(default_factory=StartDeadline)
    tenant: int = 0

    @property
    def sampling(self) -> Sampling:
        return self.terms.sampling

    @property
    def priority(self) -> int:
        return self.terms.priority

    @property
    def order(self) -> tuple[int, float, int]:
        """Who comes first: higher priority, then the earlier deadline, then arrival."""
        return (-self.priority, self.due.by, self.arrival)

    def expired(self, now: float) -> bool:
        """Nobody waits for it any more; the front is about to say so."""
        return now > self.due.by and not self.due.begun

    @property
    def waits_for_leader(self) -> bool:
        return self.group is not None and not self.group.ready and self.group.leader is not None

    @property
    def namespace(self) -> int:
        """Sequences share prefixes only within one: keys of another length class are other keys."""
        return self.rope_class

    @property
    def spans(self) -> tuple[ImageSpan, ...]:
        """Positions of images, whose ids are none of the vocabulary's."""
        return self.images.spans if self.images is not None else ()

    @property
    def scored(self) -> bool:
        """Its prompt gets a score and no answer."""
        return self.sampling.max_new_tokens == 0

    @property
    def reads_cache(self) -> bool:
        """Whoever owes prompt logprobs has to compute the whole prompt."""
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
        """The prompt logprobs are out; the worker is not asked for them again."""
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
    if limits.reward:
        request = to_score(request, limits)
    ids, max_new = fit(request, limits)
    resumed = len(ids) > request.prompt_tokens
    terms = request.terms
    sampling = replace(terms.sampling, max_new_tokens=max_new)
    if resumed:
        sampling = replace(sampling, prompt_logprobs=-1)
    stop_ids = tuple(np.frombuffer(sampling.stop_ids, "<i4").tolist())
    masked_ids = tuple(dict.fromkeys(limits.eos_ids + stop_ids)) if sampling.min_new_tokens > 0 else ()
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
            masked_ids=masked_ids,
            owed_logprobs=OwedLogprobs(request.prompt_tokens - 1, sampling.prompt_logprobs) if owed else None,
            rope_class=limits.rope_class(request.prompt_tokens),
            images=images,
            due=due,
        )
        for index in range(terms.n)
    ]
