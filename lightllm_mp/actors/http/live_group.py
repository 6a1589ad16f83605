"""Several requests that are answered as one: the prompts of one body. A client cannot come back to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from msgspec.structs import replace

from lightllm_mp.actors.front.live_request import Answer, Event, LiveRequest
from lightllm_mp.errors import EngineError
from lightllm_mp.messages import Generate, Scheduled


class LiveGroup:
    """Looks like a live request with the answers of all. Answer i of request k has the index k * n + i."""

    taken = 0

    def __init__(self, prompts: Sequence[LiveRequest], label: str) -> None:
        self.prompts, self.label = prompts, label
        self.answers = [answer for live in prompts for answer in live.answers]
        self.form = prompts[0].form
        self._queue: asyncio.Queue[list[Event] | EngineError | None] = asyncio.Queue(1)
        self._pumps: list[asyncio.Task[None]] = []
        self._ended = 0

    @property
    def error(self) -> EngineError | None:
        return next((live.error for live in self.prompts if live.error is not None), None)

    @property
    def started(self) -> float:
        return self.prompts[0].started

    @property
    def scheduled(self) -> float:
        """Monotonic seconds of the first; 0: not yet."""
        return min((live.scheduled for live in self.prompts if live.scheduled), default=0.0)

    @property
    def came(self) -> Scheduled:
        """Of its first prompt."""
        return self.prompts[0].came

    @property
    def detokenized(self) -> float:
        return max(live.detokenized for live in self.prompts)

    @property
    def request(self) -> Generate:
        """Its first prompt's."""
        return self.prompts[0].request

    @property
    def first(self) -> float:
        return min((live.first for live in self.prompts if live.first), default=0.0)

    @property
    def on_overflow(self) -> Callable[[], None] | None:
        """Called when the consumer is too slow for one of them."""
        return self.prompts[0].on_overflow

    @on_overflow.setter
    def on_overflow(self, abort: Callable[[], None]) -> None:
        for live in self.prompts:
            live.on_overflow = abort

    def seen(self) -> Iterator[list[Event]]:
        return iter(())

    async def batch(self) -> list[Event]:
        """Like a live request's."""
        if not self._pumps:
            n = len(self.prompts[0].answers)
            self._pumps = [asyncio.create_task(self._pump(live, k * n)) for k, live in enumerate(self.prompts)]
        while self._ended < len(self.prompts):
            match await self._queue.get():
                case None:
                    self._ended += 1
                case EngineError() as error:
                    raise error
                case events:
                    return events
        return []

    async def answer(self) -> list[Answer]:
        """All answers. Raises the first error."""
        await asyncio.gather(*(live.answer() for live in self.prompts))
        return self.answers

    def close(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        for live in self.prompts:
            live.close()

    async def _pump(self, live: LiveRequest, first: int) -> None:
        try:
            while events := await live.batch():
                await self._queue.put([replace(event, index=first + event.index) for event in events])
            await self._queue.put(None)
        except EngineError as error:
            await self._queue.put(error)
