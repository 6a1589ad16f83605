"""The consuming end of lanes in the standard library alone."""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import TYPE_CHECKING

from lightllm_mp.shm.counted import U64, CountedEnd, add_to, count_of
from lightllm_mp.shm.layout import (
    BELL_COUNTS,
    CONSUMER_COUNTS,
    HEAD,
    KIND_LAST,
    KIND_PAD,
    PAGE,
    PARKED,
    POISONED,
    RESETS,
    SPACE_WANTED,
    STATE,
)

if TYPE_CHECKING:
    from lightllm_mp.shm.doorbell import Bell
    from lightllm_mp.shm.lane import Lane

_GETS, _SPACE_DOORBELLS, _SEEN_BACKLOG = (CONSUMER_COUNTS // 8 + i for i in range(3))


class Source(CountedEnd):
    """One lane of a Consumer."""

    def __init__(self, lane: Lane, peer: Bell) -> None:
        super().__init__(lane)
        self.peer_event = peer.event_fd
        resets, self.head, self.available, self.owed = lane.kept.get("consumer", (-1, 0, 0, 0))
        if resets != self.resets:
            self.rejoin()

    def keep(self) -> None:
        self.lane.kept["consumer"] = self.resets, self.head, self.available, self.owed
        self.release()

    def rejoin(self) -> None:
        self.resets = self.u64[RESETS // 8]
        self.head = self.u64[HEAD // 8]
        self.available = 0  # counted bytes that are not yet drained
        self.owed = 0  # drained bytes that the producer was not yet told of

    def collect(self) -> None:
        """Reads the count; one that no producer can have reached poisons the lane."""
        if self.resets != self.u64[RESETS // 8]:
            self.rejoin()
        self.available += count_of(self.data_fd)
        if self.available > self.capacity or self.available & 7:
            self.available = 0
            self.poison(self.peer_event)
        elif self.available > self.u64[_SEEN_BACKLOG]:
            self.u64[_SEEN_BACKLOG] = self.available

    def take(self, index: int, budget: int, out: list[tuple[int, int, bytes]]) -> int:
        """Moves at most `budget` counted records to `out`."""
        if self.resets != self.u64[RESETS // 8]:
            self.rejoin()
        if not self.available or self.u32[STATE // 4] == POISONED:
            return 0
        mask, head, left, taken = self.capacity - 1, self.head, self.available, 0
        while taken < budget and left:
            at = PAGE + (head & mask)
            header = self.u64[at >> 3]
            size = self._record_size(head & mask, left, header)
            if not size:
                self.poison(self.peer_event)
                left = 0
                break
            if header >> 32 != KIND_PAD:
                out.append((index, header >> 32, self.map[at + 8 : at + 8 + (header & 0xFFFFFFFF)]))
                taken += 1
            head = (head + size) & U64
            left -= size
        self._give_back((head - self.head) & U64, head, left, taken)
        return taken

    def _record_size(self, offset: int, left: int, header: int) -> int:
        length, kind = header & 0xFFFFFFFF, header >> 32
        size = (length + 15) & ~7
        if size > left or size > self.capacity - offset:
            return 0
        if kind == KIND_PAD:
            return size if offset + size == self.capacity and length % 8 == 0 else 0
        return size if 1 <= kind <= KIND_LAST and length <= self.capacity // 8 else 0

    def _give_back(self, released: int, head: int, left: int, taken: int) -> None:
        """A producer that waits is told only when half of the lane is free, so that it is woken once."""
        words = self.u64
        self.head, self.available = head, left
        words[HEAD // 8] = head
        self.add(_GETS, taken)
        self.owed += released
        waits = self.u32[SPACE_WANTED // 4]
        if self.owed and (not waits or left <= self.capacity // 2):
            self.add(_SPACE_DOORBELLS, waits)
            if not add_to(self.space_fd, self.owed):
                self.poison(self.peer_event)
            self.owed = 0


class Consumer:
    """As `_ring.Consumer`."""

    def __init__(self, own: Bell) -> None:
        self._bell = own
        self._poller = own.poller()
        self._sources: list[Source] = []
        self._by_fd: dict[int, Source] = {}
        self._next = 0
        self._u32 = own.page.view.cast("I")
        self._u64 = own.page.view.cast("Q")

    def add(self, lane: Lane, peer: Bell) -> int:
        source = Source(lane, peer)
        with contextlib.suppress(FileExistsError):  # by an inbox that was dropped and not closed
            self._poller.register(source.data_fd, select.EPOLLIN)
        self._by_fd[source.data_fd] = source
        self._sources.append(source)
        return len(self._sources) - 1

    def _collect(self, timeout: float = 0) -> bool:
        """Reads the counts of the lanes; True when the bell rang or space came back, both of which stay to be seen."""
        rung = False
        for fd, _ in self._poller.poll(timeout):
            source = self._by_fd.get(fd)
            if source is not None:
                source.collect()
                continue
            rung = True
            if fd != self._bell.event_fd:  # space: the one shot is used up, the bell keeps it
                self._bell.ring()
        return rung

    def _ready(self) -> bool:
        return any(s.available and s.u32[STATE // 4] != POISONED for s in self._sources)

    def drain(self, max: int = 256) -> list[tuple[int, int, bytes]]:
        self._collect()
        out: list[tuple[int, int, bytes]] = []
        lanes = len(self._sources)
        share, left = -(-max // lanes) if lanes else 0, max
        more = lanes > 0 and left > 0
        while more:
            more = False
            for _ in range(lanes):
                if left <= 0:
                    break
                budget = min(share, left)
                taken = self._sources[self._next].take(self._next, budget, out)
                self._next = (self._next + 1) % lanes
                left -= taken
                more |= taken == budget and left > 0
        return out

    def park(self) -> bool:
        self._collect()
        if self._ready():
            return False
        self._u32[PARKED // 4] = 1
        self._u64[BELL_COUNTS // 8] += 1
        return True

    def unpark(self) -> None:
        self._collect()
        self._u32[PARKED // 4] = 0
        self._u64[BELL_COUNTS // 8 + 1] += 1
        count_of(self._bell.event_fd)

    def wait(self, timeout: float | None = None, spin_us: float = 0) -> bool:
        until = None if timeout is None else time.monotonic() + max(timeout, 0)
        if self._spin(spin_us) or not self.park():
            return True
        left = None if until is None else max(until - time.monotonic(), 0)
        rung = self._collect(left)  # type: ignore[arg-type]
        self.unpark()
        return rung or self._ready()

    def _spin(self, spin_us: float) -> bool:
        if self._ready():
            return True
        if spin_us <= 0:
            return False
        end = time.monotonic() + 1e-6 * spin_us
        while True:
            self._collect()
            if self._ready():
                return True
            if time.monotonic() >= end:
                return False
            os.sched_yield()

    def close(self) -> None:
        """Again is no error."""
        for source in self._sources:
            with contextlib.suppress(FileNotFoundError, ValueError):  # the bell was closed before
                self._poller.unregister(source.data_fd)
            source.keep()
        self._sources.clear()
        self._by_fd.clear()
        self._next = 0
        self._u32.release()
        self._u64.release()
