"""The two ends of a lane in the standard library alone: the kernel counts the bytes, so no CPU can reorder anything.

Every publish is an `eventfd_write` of the bytes published and the consumer touches counted bytes only; released bytes
come back the same way on a second eventfd. What a process wrote before it added to an eventfd is visible to whoever
reads that count, on every CPU that Linux runs on. The positions in the header are kept for gauges, never relied upon.

Sleeping needs no parked flag: the owner sleeps on an epoll set that holds its bell and the eventfds of its lanes, and
epoll is level-triggered. A full producer puts the lane's space eventfd into its own set, once (EPOLLONESHOT).
The counts that an end has read are private memory of its process. `Lane.kept` hands them on to the next end over the
same Lane object; another process can only take over after Lane.reset().
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from lightllm_mp.shm.errors import LaneClosed
from lightllm_mp.shm.layout import (
    BELL_COUNTS,
    CONSUMER_COUNTS,
    HEAD,
    KIND_LAST,
    KIND_MESSAGE,
    KIND_PAD,
    OPEN,
    PAGE,
    PARKED,
    POISONED,
    PRODUCER_COUNTS,
    RESETS,
    SPACE_WANTED,
    STATE,
    TAIL,
)

if TYPE_CHECKING:
    from lightllm_mp.shm.doorbell import Bell
    from lightllm_mp.shm.lane import Lane

_U64 = (1 << 64) - 1
_PUTS, _FULL, _DOORBELLS, _BACKLOG = (PRODUCER_COUNTS // 8 + i for i in range(4))
_GETS, _SPACE_DOORBELLS, _SEEN_BACKLOG = (CONSUMER_COUNTS // 8 + i for i in range(3))
_CHECKS_PER_YIELD = 32


def count_of(event_fd: int) -> int:
    """Takes what was counted; 0 when nothing was."""
    try:
        return os.eventfd_read(event_fd)
    except BlockingIOError:
        return 0


class _End:
    """What both ends know of a lane."""

    def __init__(self, lane: Lane) -> None:
        self.capacity = lane.capacity
        self.data_fd, self.space_fd = lane.fds[1:]
        self.map = lane.segment.map
        self.bytes = memoryview(self.map)
        self.u64 = self.bytes.cast("Q")
        self.u32 = self.bytes.cast("I")
        self.lane = lane
        self.resets = self.u64[RESETS // 8]

    def poison(self, peer_event: int) -> None:
        if self.u32[STATE // 4] != POISONED:
            self.u32[STATE // 4] = POISONED
            os.eventfd_write(peer_event, 1)

    def add(self, gauge: int, more: int) -> None:
        """A peer may have written anything there; that must not be an error here."""
        self.u64[gauge] = (self.u64[gauge] + more) & _U64

    def release(self) -> None:
        self.u64.release()
        self.u32.release()
        self.bytes.release()


class Producer(_End):
    """As `_ring.Producer`."""

    def __init__(self, lane: Lane, own: Bell, peer: Bell) -> None:
        super().__init__(lane)
        self._poller = own.poller()
        self._peer_event = peer.event_fd
        self._watched = False
        resets, self._tail, self._credit = lane.kept.get("producer", (-1, 0, 0))
        if resets != self.resets:
            self._rejoin()

    def _rejoin(self) -> None:
        self.resets = self.u64[RESETS // 8]
        self._tail = self.u64[TAIL // 8]
        self._credit = self.capacity - ((self._tail - self.u64[HEAD // 8]) & _U64)
        if self._credit < 0 or self._tail & 7:
            self._corrupt("its positions are impossible")

    def _corrupt(self, what: str) -> NoReturn:
        self.poison(self._peer_event)
        raise LaneClosed(f"the lane is poisoned: {what}")

    def try_put(self, data: bytes, kind: int = KIND_MESSAGE) -> bool:
        self._check(kind)
        start = self._tail
        if not self._place(data, kind):
            return False
        self._publish((self._tail - start) & _U64, 1)
        return True

    def put_many(self, records: Sequence[bytes], kind: int = KIND_MESSAGE) -> int:
        self._check(kind)
        for data in records:
            self._check_size(data)
        start, done = self._tail, 0
        for data in records:
            if not self._place(data, kind):
                break
            done += 1
        if done:
            self._publish((self._tail - start) & _U64, done)
        return done

    def _check(self, kind: int) -> None:
        state = self.u32[STATE // 4]
        if state != OPEN:
            raise LaneClosed("the lane is poisoned" if state == POISONED else "the lane is closed")
        if not 1 <= kind <= KIND_LAST:
            raise ValueError(f"no such record kind: {kind}")
        if self.resets != self.u64[RESETS // 8]:
            self._rejoin()

    def _check_size(self, data: bytes) -> None:
        if len(data) > self.capacity // 8:
            raise ValueError(f"a record of {len(data)} bytes does not fit: the lane takes {self.capacity // 8}")

    def _place(self, data: bytes, kind: int) -> bool:
        """Copies one record behind the tail; not yet counted, so not yet visible."""
        length = len(data)
        if length > self.capacity // 8:
            self._check_size(data)
        size = (length + 15) & ~7
        offset = self._tail & (self.capacity - 1)
        room = self.capacity - offset
        need = size if size <= room else size + room
        if need > self._credit and not self._refill(need):
            return False
        if size > room:
            self.u64[(PAGE + offset) >> 3] = (room - 8) | KIND_PAD << 32
            offset = 0
        at = PAGE + offset
        self.u64[at >> 3] = length | kind << 32
        self.bytes[at + 8 : at + 8 + length] = data
        self._tail = (self._tail + need) & _U64
        self._credit -= need
        return True

    def _refill(self, need: int) -> bool:
        """Takes back the bytes that the consumer has released; when they do not do, asks to be woken."""
        self._credit += count_of(self.space_fd)
        if self._credit > self.capacity:
            self._corrupt("more bytes were released than published")
        if need <= self._credit:
            self.u32[SPACE_WANTED // 4] = 0
            return True
        self.u32[SPACE_WANTED // 4] = 1
        once = select.EPOLLIN | select.EPOLLONESHOT
        if self._watched:
            self._poller.modify(self.space_fd, once)
        else:
            self._poller.register(self.space_fd, once)
            self._watched = True
        self.add(_FULL, 1)
        self.u64[_BACKLOG] = max(self.u64[_BACKLOG], self.capacity - self._credit)
        return False

    def _publish(self, size: int, records: int) -> None:
        words = self.u64
        words[TAIL // 8] = self._tail
        self.add(_PUTS, records)
        self.add(_DOORBELLS, 1)
        os.eventfd_write(self.data_fd, size)

    def close(self) -> None:
        if self._watched and not self._poller.closed:
            self._poller.unregister(self.space_fd)
            self._watched = False
        self.lane.kept["producer"] = self.resets, self._tail, self._credit
        self.release()


class Source(_End):
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
            head = (head + size) & _U64
            left -= size
        self._give_back((head - self.head) & _U64, head, left, taken)
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
            os.eventfd_write(self.space_fd, self.owed)
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
        for source in self._sources:
            if not self._poller.closed:
                self._poller.unregister(source.data_fd)
            source.keep()
        self._sources.clear()
        self._by_fd.clear()
        self._next = 0
        for view in (self._u32, self._u64):
            view.release()
