"""The Python ring: both ends of a lane with the standard library alone. Eventfds count the bytes, so the kernel orders
all memory accesses.

Each publish is an `eventfd_write` of the published bytes, and the consumer reads counted bytes only. Released bytes
come back in the same way on a second eventfd. What a process writes before it adds to an eventfd is visible to the
process that reads the count, on every CPU that Linux supports. The positions in the header are only gauges.

Sleep needs no parked flag: the owner sleeps on an epoll set of its bell and the eventfds of its lanes, and epoll is
level-triggered. A producer that finds the lane full adds the lane's space eventfd to its own set, once (EPOLLONESHOT).
The counts that an end has read are private memory of its process. `Lane.kept` passes them to the next end of the same
Lane object. Another process can take over only after Lane.reset().
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lightllm_mp.shm.layout import INCARNATION, POISONED, STATE

if TYPE_CHECKING:
    from lightllm_mp.shm.lane import Lane

U64 = (1 << 64) - 1


def count_of(event_fd: int) -> int:
    """Reads and clears the counter."""
    try:
        return os.eventfd_read(event_fd)
    except BlockingIOError:
        return 0


def add_to(event_fd: int, more: int) -> bool:
    """Adds to the counter. False: it is full. Then a bell rings already; on a lane the peer is incorrect."""
    try:
        os.eventfd_write(event_fd, more)
    except BlockingIOError:
        return False
    return True


class EventfdEnd:
    """Common part of the two ends."""

    def __init__(self, lane: Lane) -> None:
        self.capacity = lane.capacity
        self.largest = lane.capacity // 8
        self.data_fd, self.space_fd = lane.fds[1:]
        self.map = lane.segment.map
        self.bytes = memoryview(self.map)
        self.u64 = self.bytes.cast("Q")
        self.u32 = self.bytes.cast("I")
        self.lane = lane
        self.incarnation = self.u64[INCARNATION // 8]

    def poison(self, peer_event: int) -> None:
        if self.u32[STATE // 4] != POISONED:
            self.u32[STATE // 4] = POISONED
            add_to(peer_event, 1)

    def gauge(self, word: int) -> int:
        """The start value of a counter, masked: a peer may have written any value, and none must raise here."""
        return self.u64[word] & (1 << 62) - 1

    def release(self) -> None:
        self.u64.release()
        self.u32.release()
        self.bytes.release()
