"""The consuming end of all lanes of one actor, for a blocking loop or for asyncio."""

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
    """Takes records from many lanes and sleeps on one descriptor. For one thread.

    drain(max)             returns copies of at most `max` records. Round robin: each lane gets its share before another
                           gets more, and the next call starts where this one ended. [] if all lanes are empty.
    park()                 True: the parked flag is set and no lane has data, so it is safe to sleep on fileno().
                           False: a lane has data; drain again.
    unpark()               call after the sleep: clears the flag and resets the bell.
    wait(timeout, spin_us) blocks without the GIL. True as soon as a lane may have data or the own bell rang (a full
                           lane has room again); False after `timeout` seconds. Polls for `spin_us` microseconds
                           before it sleeps, and yields the CPU between polls.

    A lane with an invalid record is poisoned and skipped (see `poisoned`). The other lanes go on.
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
        # The end's own methods: a Python frame around each would cost as much as the drain of a record.
        self.drain = self._end.drain
        self.park = self._end.park
        self.unpark = self._end.unpark
        self.wait = self._end.wait

    def add(self, lane: Lane, peer: Bell) -> int:
        """Adds the consuming end of `lane`; `peer` is the producer's bell. Returns the lane's index in records."""
        if lane.implementation != self._implementation:
            raise ValueError(f"the lane is for the {lane.implementation} ring, the inbox for {self._implementation}")
        if self._implementation == "python":
            index = self._end.add(lane, peer)
        else:
            index = self._end.add(lane.segment.map, peer.event_fd)
        self._lanes.append(lane)
        return index

    @property
    def poisoned(self) -> list[int]:
        """Indices of the lanes that are corrupt and therefore skipped."""
        return [index for index, lane in enumerate(self._lanes) if lane.state == "poisoned"]

    def fileno(self) -> int:
        """A descriptor that is readable when the bell rang: the eventfd, or the epoll set of the Python ring."""
        return self.bell.poller().fileno() if self._implementation == "python" else self.bell.event_fd

    def attach(
        self, loop: asyncio.AbstractEventLoop, on_records: Callable[[list[Record]], None], budget: int = 256
    ) -> None:
        """Delivers records in `loop`, at most `budget` per callback, so that other callbacks get their turn.

        `on_records([])` is called if the bell rang without data: a full lane has room again. An exception of
        `on_records` goes to the loop's exception handler, and the inbox goes on.
        """
        if self._loop is not None:
            raise RuntimeError("the inbox is already attached to a loop")
        self._loop, self._on_records, self._budget, self._rung = loop, on_records, budget, False
        loop.add_reader(self.fileno(), self._on_bell)
        self._next = loop.call_soon(self._go_on)

    def detach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends `attach`. Idempotent."""
        if self._loop is None:
            return
        loop.remove_reader(self.fileno())
        if self._next is not None:
            self._next.cancel()
        self._loop = self._next = None

    def _on_bell(self) -> None:
        self.unpark()
        self._rung = True
        if self._next is None:  # else a delivery is scheduled, and one budget per turn of the loop is enough
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
        """Frees the memory of the lanes' ends."""
        if self._loop is not None:
            self.detach(self._loop)
        self._end.close()
        self._lanes.clear()
