"""The producing end of the Python ring (see eventfd_lane.py)."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from lightllm_mp.shm.errors import LaneClosed
from lightllm_mp.shm.eventfd_lane import U64, EventfdEnd, count_of
from lightllm_mp.shm.layout import (
    HEAD,
    INCARNATION,
    KIND_LAST,
    KIND_MESSAGE,
    KIND_PAD,
    OPEN,
    PAGE,
    POISONED,
    PRODUCER_COUNTS,
    SPACE_WANTED,
    STATE,
    TAIL,
)

if TYPE_CHECKING:
    from lightllm_mp.shm.doorbell import Bell
    from lightllm_mp.shm.lane import Lane

_PUTS, _FULL, _DOORBELLS, _BACKLOG = (PRODUCER_COUNTS // 8 + i for i in range(4))


class Producer(EventfdEnd):
    """Has the interface of `_ring.Producer`."""

    def __init__(self, lane: Lane, own: Bell, peer: Bell) -> None:
        super().__init__(lane)
        self._poller = own.poller()
        self._peer_event = peer.event_fd
        self._open = True
        self._puts, self._full, self._doorbells = (self.gauge(at) for at in (_PUTS, _FULL, _DOORBELLS))
        incarnation, self._tail, self._credit = lane.kept.get("producer", (-1, 0, 0))
        if incarnation != self.incarnation:
            self._rejoin()

    def _rejoin(self) -> None:
        self.incarnation = self.u64[INCARNATION // 8]
        self._tail = self.u64[TAIL // 8]
        self._credit = self.capacity - ((self._tail - self.u64[HEAD // 8]) & U64)
        if self._credit < 0 or self._tail & 7:
            self._corrupt("its positions are impossible")

    def _corrupt(self, what: str) -> NoReturn:
        self.poison(self._peer_event)
        raise LaneClosed(f"the lane is poisoned: {what}")

    def try_put(self, data: bytes, kind: int = KIND_MESSAGE) -> bool:
        start = self._tail if self._usable(kind) else 0
        if not self._place(data, kind):
            return False
        self._publish((self._tail - start) & U64, 1)
        return True

    def put_many(self, records: Sequence[bytes], kind: int = KIND_MESSAGE) -> int:
        start = self._tail if self._usable(kind) else 0
        for data in records:
            self._check_size(len(data))
        done = 0
        for data in records:
            if not self._place(data, kind):
                break
            done += 1
        if done:
            self._publish((self._tail - start) & U64, done)
        return done

    def _usable(self, kind: int) -> bool:
        """True, or the exception that a put raises."""
        state = self.u32[STATE // 4]
        if not 1 <= kind <= KIND_LAST:
            raise ValueError(f"no such record kind: {kind}")
        if state != OPEN:
            raise LaneClosed("the lane is poisoned" if state == POISONED else "the lane is closed")
        if self.incarnation != self.u64[INCARNATION // 8]:
            self._rejoin()
        return True

    def _check_size(self, length: int) -> None:
        if length > self.largest:
            raise ValueError(f"a record of {length} bytes does not fit: the lane takes {self.largest}")

    def _place(self, data: bytes, kind: int) -> bool:
        """Copies one record to the tail. The consumer does not see it before `_publish` counts it."""
        length = len(data)
        self._check_size(length)
        need = size = (length + 15) & ~7
        offset = self._tail & (self.capacity - 1)
        room = self.capacity - offset
        if size > room:
            need += room
        if need > self._credit and not self._refill(need):
            return False
        if size > room:
            self.u64[(PAGE + offset) >> 3] = (room - 8) | KIND_PAD << 32
            offset = 0
        at = PAGE + offset
        self.u64[at >> 3] = length | kind << 32
        self.bytes[at + 8 : at + 8 + length] = data
        self._tail = (self._tail + need) & U64
        self._credit -= need
        return True

    def _refill(self, need: int) -> bool:
        """Collects the bytes that the consumer has released. False: too few; the bell rings when space comes back."""
        self._credit += count_of(self.space_fd)
        if self._credit > self.capacity:
            self._corrupt("more bytes were released than published")
        if need <= self._credit:
            self.u32[SPACE_WANTED // 4] = 0
            return True
        self.u32[SPACE_WANTED // 4] = 1
        self._watch()
        self._full += 1
        self.u64[_FULL] = self._full
        self.u64[_BACKLOG] = max(self.u64[_BACKLOG], self.capacity - self._credit)
        return False

    def _watch(self) -> None:
        """Wakes the own process once when space comes back, at once if it already has."""
        once = select.EPOLLIN | select.EPOLLONESHOT
        try:
            self._poller.modify(self.space_fd, once)
        except FileNotFoundError:
            self._poller.register(self.space_fd, once)

    def _publish(self, size: int, records: int) -> None:
        self._puts += records
        self._doorbells += 1
        words = self.u64
        words[TAIL // 8] = self._tail
        words[_PUTS], words[_DOORBELLS] = self._puts, self._doorbells
        try:
            os.eventfd_write(self.data_fd, size)
        except BlockingIOError:
            self._corrupt("another process has counted bytes")

    def close(self) -> None:
        """Idempotent."""
        if self._open:
            self._open = False
            with contextlib.suppress(FileNotFoundError, ValueError):  # never watched, or the bell is closed
                self._poller.unregister(self.space_fd)
            self.lane.kept["producer"] = self.incarnation, self._tail, self._credit
            self.release()
