"""A live request as its consumer sees it: one event per token (stream) or all answers at the end.

Events are kept encoded until the request is dropped, so a consumer that comes back can read them again from any number.
"""

from __future__ import annotations

import asyncio
import copy
import math
from array import array
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from lightllm_mp.actors.front.image_files import Upload
from lightllm_mp.errors import EngineError, SlowReader
from lightllm_mp.messages import Generate, Pooled, PromptLogprobs, Scheduled

QUEUE_BYTES = 1 << 20
"""Most bytes of encoded events that the consumer of a stream may be behind."""
UNTRACED = Scheduled(0)
SLICE = 256
"""Events that are decoded at once."""
_SHORT = tuple(bytes([0x90 | count]) for count in range(16))
"""MessagePack's heads of short arrays."""


class Alternative(Struct, frozen=True, array_like=True, gc=False):
    """One of the most likely tokens at a position."""

    id: int
    logprob: float
    text: str


class Event(Struct, frozen=True, array_like=True, gc=False):
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


_encode_into = msgspec.msgpack.Encoder().encode_into
decode_events = msgspec.msgpack.Decoder(list[Event]).decode


class Answer:
    """One of the n answers of a request: the ids produced so far, from which a resumed sequence starts, and its events,
    encoded one after the other (about 40 bytes a token, and 20 for each alternative)."""

    __slots__ = (
        "cached_tokens",
        "data",
        "ends",
        "finish",
        "ids",
        "index",
        "last",
        "live",
        "pooled",
        "prompt_tokens",
        "rid",
    )

    def __init__(self, live: LiveRequest, index: int) -> None:
        self.live, self.index, self.rid = live, index, live.rid + index
        self.ids = array("i")
        self.data = bytearray()
        self.ends = array("q")
        """Where each event ends in `data`."""
        self.finish: str | None = None
        self.pooled = b""
        """float32 column: the embedding or score of a prompt."""
        self.prompt_tokens = self.cached_tokens = 0
        self.last = 0.0

    @property
    def score(self) -> float:
        """The only number of the row."""
        return float(memoryview(self.pooled).cast("f")[0])

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events())

    def events(self) -> Iterator[Event]:
        for events in self.slices():
            yield from events

    def slices(self) -> Iterator[list[Event]]:
        """All events, SLICE at once."""
        for first in range(0, len(self.ends), SLICE):
            yield self.slice(first, first + SLICE)

    def slice(self, first: int, stop: int) -> list[Event]:
        """Events [first, stop)."""
        stop = min(stop, len(self.ends))
        return decode_events(_array(stop - first, self.encoded(first, stop)))

    def encoded(self, first: int, stop: int) -> bytearray:
        """Events [first, stop) as they are kept."""
        return self.data[self.ends[first - 1] if first else 0 : self.ends[stop - 1] if stop else 0]

    def keep(self, event: Event) -> int:
        """Returns the encoded size in bytes."""
        before = len(self.data)
        _encode_into(event, self.data, -1)
        self.ends.append(len(self.data))
        if event.id >= 0:
            self.ids.append(event.id)
        self.prompt_tokens, self.cached_tokens = event.prompt_tokens, event.cached_tokens
        self.finish = event.finish
        return len(self.data) - before


class EventCursor:
    """Reads the events of a request in the order in which they came. `at`: number of events read."""

    def __init__(self, answers: list[Answer], order: bytearray, at: int = 0) -> None:
        self._answers, self._order, self.at = answers, order, at
        self._read = [order.count(answer.index, 0, at) for answer in answers]

    def skip(self, stop: int) -> None:
        """Go on to number `stop`."""
        for index in self._order[self.at : stop]:
            self._read[index] += 1
        self.at = stop

    def pieces(self) -> Iterator[bytes]:
        """The rest of the events, as arrays of at most SLICE."""
        while self.at < len(self._order):
            yield self.take(min(self.at + SLICE, len(self._order)))

    def take(self, stop: int) -> bytes:
        """The events up to number `stop`, as a MessagePack array of `Event`s."""
        first, self.at = self.at, stop
        if len(self._answers) == 1:
            return _array(stop - first, self._answers[0].encoded(first, stop))
        parts = []
        for index in self._order[first:stop]:
            at = self._read[index]
            parts.append(self._answers[index].encoded(at, at + 1))
            self._read[index] = at + 1
        return _array(stop - first, *parts)


class RequestOwner(Protocol):
    """The table that holds the request."""

    def forget(self, live: LiveRequest) -> None:
        """The consumer is done with it."""

    def record(self, live: LiveRequest, first: int, data: bytes) -> None:
        """Its consumer is going to see these events (an encoded array), of which the first has this number."""


Relay = Callable[[bytes], None]
"""Takes each frame of a request's record (request_journal.py) to whoever can submit it to another engine."""


class LiveRequest:
    """A live request. Iterate over it (`stream=True`) or await `answer()`; `close()` it in a `finally`.

    `label` and the request's tenant name it for a client that comes back; `form` says how the front shows its answer,
    and means nothing here.
    """

    came = UNTRACED
    """When its parts came to the router, for a trace."""
    detokenized = 0.0
    """When the detokenizer began with its last tokens, for a trace (monotonic); 0: not known."""
    scheduled = 0.0
    """When its prefill began (monotonic); 0: not yet."""
    first = 0.0
    """When the first token came (monotonic); 0: not yet."""
    timer: asyncio.TimerHandle | None = None
    sent = False
    """The engine has the request, or had it when the current repair began."""
    fruitless = 0
    """How often the same process died since the last token while the engine had the request."""
    blamed: frozenset[str] = frozenset()
    """The processes that died every one of those times."""
    error: EngineError | None = None
    closed = False
    attached = True
    """It has a consumer. A request that the last front left has none until its client comes back."""
    on_overflow: Callable[[], None] | None = None
    """Called when the request fails because its consumer is too slow."""
    number: int | None = None
    """The number of its record in the journal."""

    def __init__(
        self,
        request: Generate,
        owner: RequestOwner,
        stream: bool,
        images: tuple[Upload, ...] = (),
        deadline: float = math.inf,
        label: str = "",
        form: bytes = b"",
        keep: float = 0.0,
        relay: Relay | None = None,
    ) -> None:
        self._owner = owner
        self.request = request
        self.images = images
        """Kept while the request may be submitted again."""
        self.rid = request.rid
        self.stream = stream
        self.label, self.form = label, form
        self.keep = keep
        """Seconds for which its table keeps it, with its images; 0: as long as any request, without them."""
        self.relay = relay
        self.answers = [Answer(self, index) for index in range(request.terms.n)]
        self.order = bytearray()
        """The answer's index of each event."""
        self.open = request.terms.n
        """Number of unfinished answers."""
        self.prompt_logprobs: list[PromptLogprobs] = []
        """The pieces that have come."""
        self.started = monotonic()
        self.deadline = deadline
        """When the answer must be complete (monotonic)."""
        self.recorded = EventCursor(self.answers, self.order)
        """The events in its record."""
        self._cursor = EventCursor(self.answers, self.order)
        self._unread = 0
        """Bytes of encoded events that the consumer has not taken."""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def key(self) -> tuple[bytes, str]:
        """Names the request for its client."""
        return self.request.terms.tenant, self.label

    @property
    def bytes(self) -> int:
        """Memory of its events and rows of numbers."""
        return sum(len(answer.data) + len(answer.pooled) for answer in self.answers)

    @property
    def taken(self) -> int:
        """Number of events that the consumer has taken."""
        return self._cursor.at

    def __aiter__(self) -> LiveRequest:
        return self

    async def __anext__(self) -> Event:
        """The next event of any answer; stops when all have finished. Raises `error` if the request failed."""
        if not await self._has_events():
            raise StopAsyncIteration
        return self._take(self.taken + 1)[0]

    async def batch(self) -> list[Event]:
        """All events since the last call, at least one; empty when all answers have finished. Raises like iteration."""
        return self._take(len(self.order)) if await self._has_events() else []

    def seen(self) -> Iterator[list[Event]]:
        """The events that the consumer had when it began, in slices."""
        stop, cursor = self.taken, EventCursor(self.answers, self.order)
        while cursor.at < stop:
            yield decode_events(cursor.take(min(cursor.at + SLICE, stop)))

    async def answer(self) -> list[Answer]:
        """All n answers once the last has finished (`stream=False`). Raises `error` if the request failed."""
        while self.open and self.error is None and not self.closed:
            await self._wait()
        if self.error is not None:
            raise self.error
        return self.answers

    def close(self) -> None:
        """Abort unfinished answers and give the request back to its table. Idempotent."""
        if not self.closed:
            self._leave()
            self._owner.forget(self)

    abort = close

    def reopened(self, taken: int, relay: Relay | None = None) -> LiveRequest:
        """The request for another consumer, who has `taken` events already. This one's consumer reads no more."""
        self._leave()
        fresh = copy.copy(self)
        fresh.closed, fresh.attached, fresh.relay = False, True, relay
        fresh.error = None if isinstance(self.error, SlowReader) else self.error
        fresh.timer = fresh.on_overflow = fresh._waiter = None
        fresh._cursor, fresh._unread = EventCursor(self.answers, self.order, taken), 0
        for answer in self.answers:
            answer.live = fresh
        return fresh

    def again(self, answer: Answer) -> Generate:
        """A request that resumes one unfinished answer after its emitted ids. Its seed is `index` higher, as for n."""
        terms = self.request.terms
        sampling = replace(terms.sampling, seed=terms.sampling.seed + answer.index)
        if self.prompt_logprobs and self.prompt_logprobs[-1].more:
            self.prompt_logprobs = []
        if self.prompt_logprobs:
            sampling = replace(sampling, prompt_logprobs=-1)
        terms = replace(terms, n=1, sampling=sampling, begun=self.scheduled > 0)
        return replace(self.request, rid=answer.rid, terms=terms, emitted=answer.ids.tobytes())

    def put(self, answer: Answer, event: Event) -> int:
        """Add an event. Returns its size in bytes."""
        size = answer.keep(event)
        self.order.append(answer.index)
        if event.finish is not None:
            self.open -= 1
        self._unread += size
        if self.stream or not self.open:
            self.wake()
        return size

    def put_row(self, answer: Answer, message: Pooled) -> int:
        """An answer's only result, a row of numbers. Returns its size in bytes."""
        answer.pooled, answer.finish = message.row, "stop"
        answer.prompt_tokens, answer.cached_tokens = message.prompt_tokens, message.cached_tokens
        self.open -= 1
        self.wake()
        return len(message.row)

    @property
    def overflows(self) -> bool:
        """The consumer of the stream is more than QUEUE_BYTES behind."""
        return self.stream and self.attached and self._unread > QUEUE_BYTES

    def fail(self, error: EngineError, *, drop: bool = False) -> None:
        """Raise `error` in the consumer, after its unread events or (`drop`) in their place."""
        self.error = error
        if drop:
            self._cursor = EventCursor(self.answers, self.order, len(self.order))
        self.wake()

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _leave(self) -> None:
        self.closed = True
        if self.timer is not None:
            self.timer.cancel()
        self.wake()

    async def _has_events(self) -> bool:
        while not self.closed:
            if self.taken < len(self.order):
                return True
            if self.error is not None:
                raise self.error
            if not self.open:
                return False
            await self._wait()
        return False

    def _take(self, stop: int) -> list[Event]:
        first = self.taken
        data = self._cursor.take(stop)
        self._owner.record(self, first, data)
        self._unread -= len(data) - len(_head(stop - first))
        return decode_events(data)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


def _array(count: int, *encoded: bytes | bytearray) -> bytes:
    return b"".join((_head(count), *encoded))


def _head(count: int) -> bytes:
    """Of a MessagePack array."""
    return _SHORT[count] if count < len(_SHORT) else b"\xdd" + count.to_bytes(4, "big")
