"""The consuming end of the Python ring (see eventfd_lane.py)."""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import TYPE_CHECKING

from lightllm_mp.shm.eventfd_lane import U64, EventfdEnd, add_to, count_of
from lightllm_mp.shm.layout import (
    BELL_COUNTS,
    CONSUMER_COUNTS,
    HEAD,
    INCARNATION,
    KIND_LAST,
    KIND_PAD,
    PAGE,
    PARKED,
    POISONED,
    SPACE_WANTED,
    STATE,
)

if TYPE_CHECKING:
    from lightllm_mp.shm.doorbell import Bell
    from lightllm_mp.shm.lane import Lane

_GETS, _SPACE_DOORBELLS, _SEEN_BACKLOG = (CONSUMER_COUNTS // 8 + i for i in range(3))


class EventfdSource(EventfdEnd):
    """One lane of a Consumer."""

    def __init__(self, lane: Lane, peer: Bell) -> None:
        super().__init__(lane)
        self.peer_event = peer.event_fd
        self._gets, self._doorbells = self.gauge(_GETS), self.gauge(_SPACE_DOORBELLS)
        incarnation, self.head, self.available, self.owed = lane.kept.get("consumer", (-1, 0, 0, 0))
        if incarnation != self.incarnation:
            self.rejoin()

    def keep(self) -> None:
        self.lane.kept["consumer"] = self.incarnation, self.head, self.available, self.owed
        self.release()

    def rejoin(self) -> None:
        self.incarnation = self.u64[INCARNATION // 8]
        self.head = self.u64[HEAD // 8]
        self.available = 0  # counted bytes that are not drained yet
        self.owed = 0  # drained bytes that are not released to the producer yet

    def is_valid(self) -> bool:
        """True if the available bytes are of this epoch and the lane is not poisoned."""
        return self.u32[STATE // 4] != POISONED and self.incarnation == self.u64[INCARNATION // 8]

    def collect(self) -> None:
        """Reads the count. A count that no correct producer reaches poisons the lane."""
        if self.incarnation != self.u64[INCARNATION // 8]:
            self.rejoin()
        self.available += count_of(self.data_fd)
        if self.available > self.capacity or self.available & 7:
            self.available = 0
            self.poison(self.peer_event)
        elif self.available > self.u64[_SEEN_BACKLOG]:
            self.u64[_SEEN_BACKLOG] = self.available

    def take(self, index: int, budget: int, out: list[tuple[int, int, bytes]]) -> int:
        """Moves at most `budget` counted records to `out`. Returns their number."""
        if self.incarnation != self.u64[INCARNATION // 8]:
            self.rejoin()
        if not self.available or self.u32[STATE // 4] == POISONED:
            return 0
        head, left, taken = self.head, self.available, 0
        u64, mask, largest = self.u64, self.capacity - 1, self.largest
        while taken < budget and left:
            at = PAGE + (head & mask)
            header = u64[at >> 3]
            length, kind = header & 0xFFFFFFFF, header >> 32
            size = (length + 15) & ~7
            if size > left or not 0 < kind <= KIND_LAST or length > largest or size > self.capacity - (head & mask):
                size = self._pad_size(head & mask, left, header)
                if not size:
                    self.poison(self.peer_event)
                    left = 0
                    break
            else:
                out.append((index, kind, self.map[at + 8 : at + 8 + length]))
                taken += 1
            head += size
            left -= size
        self._give_back(head - self.head, head & U64, left, taken)
        return taken

    def _pad_size(self, offset: int, left: int, header: int) -> int:
        """The bytes of padding to skip, or 0 for a record that no correct producer writes."""
        size = (header & 0xFFFFFFFF) + 8
        right = header >> 32 == KIND_PAD and size % 8 == 0 and size <= left and offset + size == self.capacity
        return size if right else 0

    def _give_back(self, released: int, head: int, left: int, taken: int) -> None:
        """Releases drained bytes. To a waiting producer only when half of the lane is free, so that it wakes once."""
        words = self.u64
        self.head, self.available = head, left
        self._gets += taken
        words[HEAD // 8] = head
        words[_GETS] = self._gets
        self.owed += released
        waits = self.u32[SPACE_WANTED // 4]
        if self.owed and (not waits or left <= self.capacity // 2):
            if waits:
                self._doorbells += 1
                words[_SPACE_DOORBELLS] = self._doorbells
            if not add_to(self.space_fd, self.owed):
                self.poison(self.peer_event)
            self.owed = 0


class Consumer:
    """Has the interface of `_ring.Consumer`."""

    def __init__(self, own: Bell) -> None:
        self._bell = own
        self._poller = own.poller()
        self._sources: list[EventfdSource] = []
        self._by_fd: dict[int, EventfdSource] = {}
        self._next = 0
        self._fresh = False  # wait or unpark has just read the counts
        self._parks = self._wakes = 0
        self._u32 = own.page.view.cast("I")
        self._u64 = own.page.view.cast("Q")

    def add(self, lane: Lane, peer: Bell) -> int:
        source = EventfdSource(lane, peer)
        with contextlib.suppress(FileExistsError):  # registered by an inbox that was dropped without close
            self._poller.register(source.data_fd, select.EPOLLIN)
        self._by_fd[source.data_fd] = source
        self._sources.append(source)
        return len(self._sources) - 1

    def _collect(self, timeout: float | None = 0, keep: bool = True) -> bool:
        """Reads the lanes' counts. True if the bell rang or space came back; `keep` leaves this for the next call."""
        rung = False
        for fd, _ in self._poller.poll(timeout):
            source = self._by_fd.get(fd)
            if source is not None:
                source.collect()
                continue
            rung = True
            if fd == self._bell.event_fd:
                if not keep:
                    count_of(fd)
            elif keep:  # space: the one-shot event is consumed, so the bell keeps it
                self._bell.ring()
        self._fresh = not keep
        return rung

    def _ready(self) -> bool:
        return any(source.available and source.is_valid() for source in self._sources)

    def drain(self, max: int = 256) -> list[tuple[int, int, bytes]]:
        if not (self._fresh and self._ready()):
            self._collect()
        self._fresh = False
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
        self._mark_parked()
        return True

    def unpark(self) -> None:
        self._mark_awake()
        self._collect(keep=False)

    def wait(self, timeout: float | None = None, spin_us: float = 0) -> bool:
        until = None if timeout is None else time.monotonic() + max(timeout, 0)
        if self._spin(spin_us):
            return True
        self._mark_parked()
        rung = self._collect(None if until is None else max(until - time.monotonic(), 0), keep=False)
        self._mark_awake()
        return rung or self._ready()

    def _mark_parked(self) -> None:
        self._u32[PARKED // 4] = 1
        self._parks += 1
        self._u64[BELL_COUNTS // 8] = self._parks

    def _mark_awake(self) -> None:
        self._u32[PARKED // 4] = 0
        self._wakes += 1
        self._u64[BELL_COUNTS // 8 + 1] = self._wakes

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
        """Idempotent."""
        for source in self._sources:
            with contextlib.suppress(FileNotFoundError, ValueError):  # the bell is closed
                self._poller.unregister(source.data_fd)
            source.keep()
        self._sources.clear()
        self._by_fd.clear()
        self._next = 0
        self._u32.release()
        self._u64.release()
