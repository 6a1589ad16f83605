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
from typing import TYPE_CHECKING

from lightllm_mp.shm.layout import INCARNATION, POISONED, STATE

if TYPE_CHECKING:
    from lightllm_mp.shm.lane import Lane

U64 = (1 << 64) - 1


def count_of(event_fd: int) -> int:
    """Takes what was counted; 0 when nothing was."""
    try:
        return os.eventfd_read(event_fd)
    except BlockingIOError:
        return 0


def add_to(event_fd: int, more: int) -> bool:
    """False: the counter is full. A bell rings then already; on a lane no correct peer lets it come to that."""
    try:
        os.eventfd_write(event_fd, more)
    except BlockingIOError:
        return False
    return True


class EventfdEnd:
    """What both ends know of a lane."""

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
        """Where a counter goes on; a peer may have written anything there, and that must not be an error here."""
        return self.u64[word] & (1 << 62) - 1

    def release(self) -> None:
        self.u64.release()
        self.u32.release()
        self.bytes.release()
