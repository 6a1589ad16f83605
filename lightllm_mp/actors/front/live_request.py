"""A live request as its consumer sees it: one event per token (stream) or all answers at the end."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections import deque
from collections.abc import Callable
from itertools import chain, repeat
from time import monotonic

from msgspec import Struct
from msgspec.structs import replace

from lightllm_mp.actors.front.image_files import Upload
from lightllm_mp.errors import EngineError
from lightllm_mp.messages import Generate, PromptLogprobs, Texts

QUEUE_BYTES = 1 << 20
"""Most bytes queued for the consumer of one streamed request."""
EVENT_BYTES = 256
"""Bytes that an event counts as, without its text."""


class Alternative(Struct, frozen=True, gc=False):
    """One of the most likely tokens at a position."""

    id: int
    logprob: float
    text: str


class Event(Struct, frozen=True, gc=False):
    """One token of one sequence. `id` is -1 if the sequence ends without another token."""

    index: int
    """Which of the n answers."""
    id: int
    text: str
    logprob: float
    count: int
    prompt_tokens: int
    cached_tokens: int
    special: bool
    finish: str | None
    top: tuple[Alternative, ...] = ()


class Answer:
    """One of the n answers of a request, in columns: int32 ids, float32 logprobs, texts and special flags per token.

    A streamed request fills `ids` only; a resumed sequence starts from them.
    """

    __slots__ = (
        "cached_tokens",
        "finish",
        "ids",
        "index",
        "last",
        "live",
        "logprobs",
        "prompt_tokens",
        "rid",
        "score",
        "special",
        "texts",
        "tops",
    )

    def __init__(self, live: LiveRequest, index: int) -> None:
        self.live, self.index, self.rid = live, index, live.rid + index
        self.ids = array("i")
        self.logprobs = array("f")
        self.texts: list[str] = []
        self.special = bytearray()
        self.tops: list[tuple[Alternative, ...]] = []
        self.finish: str | None = None
        self.score: float | None = None
        """The score of a reward model."""
        self.prompt_tokens = self.cached_tokens = 0
        self.last = 0.0

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def keep(self, event: Event) -> None:
        self.texts.append(event.text)
        if event.id >= 0:
            self.logprobs.append(event.logprob)
            self.special.append(event.special)
            self.tops.append(event.top)


class LiveRequest:
    """A live request. Iterate over it (`stream=True`) or await `answer()`; `close()` it in a `finally`."""

    def __init__(
        self,
        request: Generate,
        forget: Callable[[LiveRequest], None],
        *,
        stream: bool,
        images: tuple[Upload, ...] = (),
        deadline: float = math.inf,
    ) -> None:
        self._forget = forget
        self.request = request
        self.images = images
        """Kept to the end, so that the request can be submitted again after a crash."""
        self.rid = request.rid
        self.stream = stream
        self.answers = [Answer(self, index) for index in range(request.terms.n)]
        self.open = request.terms.n
        """Number of unfinished answers."""
        self.prompt_logprobs: PromptLogprobs | None = None
        self.started = monotonic()
        self.scheduled = 0.0
        """When its prefill began (monotonic); 0: not yet."""
        self.first = 0.0
        """When the first token came (monotonic); 0: not yet."""
        self.deadline = deadline
        """When the answer must be complete (monotonic)."""
        self.timer: asyncio.TimerHandle | None = None
        self.sent = False
        """The engine has the request, or had it when the current repair began."""
        self.deaths: tuple[int, ...] = ()
        """The epochs before which the same process died since the last token, while the engine had the request."""
        self.blamed: frozenset[str] = frozenset()
        """The processes that died every one of those times."""
        self.error: EngineError | None = None
        self.closed = False
        self.on_overflow: Callable[[], None] | None = None
        """Called when the request fails because its consumer is too slow."""
        self._events: deque[Event] = deque()
        self._queued = 0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def fruitless(self) -> int:
        """How often the same process died since the last token while the engine had the request."""
        return len(self.deaths)

    def __aiter__(self) -> LiveRequest:
        return self

    async def __anext__(self) -> Event:
        """The next event of any answer; stops when all have finished. Raises `error` if the request failed."""
        while not self._events:
            if self.error is not None:
                raise self.error
            if self.closed or not self.open:
                raise StopAsyncIteration
            await self._wait()
        event = self._events.popleft()
        self._queued -= EVENT_BYTES + len(event.text)
        return event

    async def batch(self) -> list[Event]:
        """All queued events, at least one; empty at the end. Raises `error` if the request failed."""
        while not self._events:
            if self.error is not None:
                raise self.error
            if self.closed or not self.open:
                return []
            await self._wait()
        events = list(self._events)
        self._events.clear()
        self._queued = 0
        return events

    async def answer(self) -> list[Answer]:
        """All n answers once the last has finished (`stream=False`). Raises `error` if the request failed."""
        while self.open and self.error is None and not self.closed:
            await self._wait()
        if self.error is not None:
            raise self.error
        return self.answers

    def close(self) -> None:
        """Abort unfinished answers, drop unread events and forget the request. Idempotent."""
        if not self.closed:
            self.closed = True
            if self.timer is not None:
                self.timer.cancel()
            self._events.clear()
            self._forget(self)
            self.wake()

    abort = close

    def again(self, answer: Answer) -> Generate:
        """A request that resumes one unfinished answer after its emitted ids. Its seed is `index` higher, as for n."""
        terms = self.request.terms
        sampling = replace(terms.sampling, seed=terms.sampling.seed + answer.index)
        if self.prompt_logprobs is not None:
            sampling = replace(sampling, prompt_logprobs=-1)
        terms = replace(terms, n=1, sampling=sampling, begun=self.scheduled > 0)
        return replace(self.request, rid=answer.rid, terms=terms, emitted=answer.ids.tobytes())

    def put(self, answer: Answer, event: Event) -> bool:
        """Queue an event for the consumer; False: the consumer is more than QUEUE_BYTES behind."""
        if not self.stream:
            answer.keep(event)
            if not self.open:
                self.wake()
            return True
        self._events.append(event)
        self._queued += EVENT_BYTES + len(event.text)
        self.wake()
        return self._queued <= QUEUE_BYTES

    def fail(self, error: EngineError, *, drop: bool = False) -> None:
        """Raise `error` in the consumer, after its unread events or (`drop`) in their place."""
        self.error = error
        if drop:
            self._events.clear()
        self.wake()

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


def alternatives(m: Texts) -> dict[int, tuple[Alternative, ...]]:
    """Index into the columns -> alternatives; their texts are empty without a tokenizer."""
    return {
        i: tuple(map(Alternative, memoryview(ids).cast("i"), memoryview(logprobs).cast("f"), chain(texts, repeat(""))))
        for (i, ids, logprobs), texts in zip(m.top, m.top_texts, strict=True)
    }
