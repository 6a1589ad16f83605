"""The consuming end of all lanes of one actor, for blocking loops and for asyncio."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from lightllm_mp.shm import eventfd_consumer
from lightllm_mp.shm.doorbell import Bell
from lightllm_mp.shm.implementation import implementation
from lightllm_mp.shm.lane import Lane
from lightllm_mp.shm.sender import require_extension

if TYPE_CHECKING:
    import asyncio

Record = tuple[int, int, bytes]  # (index of the lane, kind, payload)


class _Drain(Protocol):
    def __call__(self, max: int = 256) -> list[Record]: ...


class _Wait(Protocol):
    def __call__(self, timeout: float | None = None, spin_us: float = 0) -> bool: ...


class Inbox:
    """Takes records from many lanes, sleeps on one descriptor. One thread.

    drain(max)             at most `max` records, copied. Round robin: each lane gives its share before another gives
                           more, and the next call starts where this one ended. [] when all lanes are empty.
    park()                 True: the parked flag is set and nothing is there, so it is safe to sleep on fileno().
                           False: there is data, drain again.
    unpark()               after sleeping: clears the flag, consumes the bell.
    wait(timeout, spin_us) blocks without the GIL. True as soon as there may be data or the own bell rang (space is
                           back); False after `timeout` seconds. Looks for data for `spin_us` microseconds before
                           it sleeps, yielding the CPU in between.

    A lane with an impossible record is poisoned and skipped (see `poisoned`); the other lanes go on.
    """

    drain: _Drain
    park: Callable[[], bool]
    unpark: Callable[[], None]
    wait: _Wait

    def __init__(self, own: Bell) -> None:
        self.bell = own
        self._lanes: list[Lane] = []
        self._implementation = implementation()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next: asyncio.Handle | None = None
        self._end: Any
        if self._implementation == "python":
            self._end = eventfd_consumer.Consumer(own)
        else:
            self._end = require_extension().Consumer(own.page.map, own.event_fd)
        # The ends' own methods: a Python frame around each would cost as much as the drain of a record.
        self.drain = self._end.drain
        self.park = self._end.park
        self.unpark = self._end.unpark
        self.wait = self._end.wait

    def add(self, lane: Lane, peer: Bell) -> int:
        """Takes the consuming end of `lane`; `peer` is the producer's bell. Returns the lane's index in records."""
        if lane.implementation != self._implementation:
            raise ValueError(f"a lane of the {lane.implementation} ring in an inbox of the {self._implementation} ring")
        if self._implementation == "python":
            index = self._end.add(lane, peer)
        else:
            index = self._end.add(lane.segment.map, peer.event_fd)
        self._lanes.append(lane)
        return index

    @property
    def poisoned(self) -> list[int]:
        """The lanes that were found corrupt and are skipped."""
        return [index for index, lane in enumerate(self._lanes) if lane.state == "poisoned"]

    def fileno(self) -> int:
        """Readable when the bell rang: the eventfd, or with the stdlib twin the epoll set of bell and lanes."""
        return self.bell.poller().fileno() if self._implementation == "python" else self.bell.event_fd

    def attach(
        self, loop: asyncio.AbstractEventLoop, on_records: Callable[[list[Record]], None], budget: int = 256
    ) -> None:
        """Delivers records in `loop`, at most `budget` per callback so that other callbacks get their turn.

        `on_records([])` is called when the bell rang without data: a full lane has room again. What `on_records` raises
        goes to the loop's exception handler; the inbox goes on.
        """
        if self._loop is not None:
            raise RuntimeError("the inbox is attached already")
        self._loop, self._on_records, self._budget, self._rung = loop, on_records, budget, False
        loop.add_reader(self.fileno(), self._on_bell)
        self._next = loop.call_soon(self._go_on)

    def detach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends `attach`; again is no error."""
        if self._loop is None:
            return
        loop.remove_reader(self.fileno())
        if self._next is not None:
            self._next.cancel()
        self._loop = self._next = None

    def _on_bell(self) -> None:
        self.unpark()
        self._rung = True
        if self._next is None:  # else it is about to deliver anyway, and one budget per turn of the loop is enough
            self._deliver()

    def _go_on(self) -> None:
        self._next = None
        self._deliver()

    def _deliver(self) -> None:
        records = self.drain(self._budget)
        try:
            if records or self._rung:
                self._rung = False
                self._on_records(records)
        finally:
            more = len(records) >= self._budget
            if self._loop is not None and self._next is None and (more or not self.park()):
                self._next = self._loop.call_soon(self._go_on)

    def close(self) -> None:
        """Gives the lanes' memory back."""
        if self._loop is not None:
            self.detach(self._loop)
        self._end.close()
        self._lanes.clear()
