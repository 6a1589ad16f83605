"""A lane: a ring in shared memory from one producing actor to one consuming actor."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

from lightllm_mp.errors import StartupError
from lightllm_mp.shm.eventfd_lane import U64, count_of
from lightllm_mp.shm.implementation import implementation
from lightllm_mp.shm.layout import (
    CLOSED,
    CONSUMER_COUNTS,
    FEATURE_COUNTED,
    HEAD,
    INCARNATION,
    OPEN,
    PAGE,
    POISONED,
    PRODUCER_COUNTS,
    SPACE_WANTED,
    STATE,
    STATE_NAMES,
    TAIL,
    LaneHeader,
    is_capacity,
    read_lane_header,
    write_lane_header,
)
from lightllm_mp.shm.segment import Segment


class LaneStats(NamedTuple):
    """Gauges of one lane since its creation. While the lane is in use, a value may be slightly old."""

    puts: int  # records published
    full_events: int  # how often a put found no room
    doorbells: int  # how often the consumer was woken; the Python ring counts every publish
    max_backlog: int  # largest number of waiting bytes that a consumer found or a producer left
    backlog_bytes: int  # bytes that wait now
    capacity: int  # bytes
    state: str  # "open", "closed" or "poisoned"; "corrupt" for any other state word


class Lane:
    """The memory of a lane: ordered, one producer, one consumer. shm/layout.py has its layout and legal states."""

    def __init__(self, segment: Segment, counters: tuple[int, ...]) -> None:
        self.segment = segment
        self._header = read_lane_header(segment.view)
        self._counters = counters
        self._u64 = segment.view.cast("Q")
        self._u32 = segment.view.cast("I")
        self._open = True
        self.kept: dict[str, tuple[int, ...]] = {}  # the counts of closed ends of the Python ring

    @classmethod
    def create(cls, capacity: int, producer: int, consumer: int) -> Lane:
        """An empty lane of epoch 1 from actor `producer` to actor `consumer`. `capacity`: bytes, a power of two.

        The largest record is capacity / 8. StartupError if there is too little memory or too few descriptors.
        """
        if not is_capacity(capacity):
            raise ValueError(f"lane capacity {capacity} must be a power of two from 4096 to 2**30")
        counted = implementation() == "python"
        segment = Segment.create(f"lane-{producer}-{consumer}", PAGE + capacity)
        features = FEATURE_COUNTED if counted else 0
        write_lane_header(segment.view, LaneHeader(capacity, 1, features, producer, consumer))
        segment.view[STATE : STATE + 4] = OPEN.to_bytes(4, "little")
        return cls(segment, _new_counters() if counted else ())

    @classmethod
    def attach(cls, *fds: int) -> Lane:
        """Maps a lane from inherited descriptors and takes ownership of them.

        StartupError (the caller keeps the descriptors) if they are not a lane, or if the lane has another layout
        version, a corrupt header, a wrong size or the other ring implementation.
        """
        segment = Segment.attach(os.dup(fds[0]))
        try:
            header = read_lane_header(segment.view)
            expected = "python" if header.features & FEATURE_COUNTED else "c"
            if header.features & ~FEATURE_COUNTED or expected != implementation():
                raise StartupError(
                    f"the lane is for the {expected} ring, this process runs the {implementation()} ring"
                )
            if len(fds) != (3 if header.features else 1):
                raise StartupError(f"a lane of the {expected} ring does not have {len(fds)} descriptors")
        except StartupError:
            segment.close()
            raise
        os.close(fds[0])
        return cls(segment, fds[1:])

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that a peer inherits: the memfd, and for the Python ring the eventfds of data and of space."""
        return (self.segment.fd, *self._counters)

    @property
    def implementation(self) -> Literal["c", "python"]:
        return "python" if self._header.features & FEATURE_COUNTED else "c"

    @property
    def capacity(self) -> int:
        return self._header.capacity

    @property
    def producer(self) -> int:
        return self._header.producer

    @property
    def consumer(self) -> int:
        return self._header.consumer

    @property
    def epoch(self) -> int:
        return read_lane_header(self.segment.view).epoch

    @property
    def state(self) -> str:
        return STATE_NAMES.get(self._u32[STATE // 4], "corrupt")

    def finish(self) -> None:
        """By the producer: OPEN -> CLOSED. The lane takes no more records; published ones can be drained."""
        if self._u32[STATE // 4] == OPEN:
            self._u32[STATE // 4] = CLOSED

    def poison(self) -> None:
        """By either side, after an invalid record: no side uses the lane again before a reset."""
        self._u32[STATE // 4] = POISONED

    def reset(self, epoch: int) -> None:
        """By the supervisor, while neither side uses the lane: empties it for a new epoch, but keeps the gauges.

        Existing ends of the lane, in any process, notice the reset and start again.
        """
        for fd in self._counters:
            count_of(fd)
        for word in (TAIL, HEAD):
            self._u64[word // 8] = 0
        self._u32[SPACE_WANTED // 4] = 0
        self._u32[STATE // 4] = OPEN
        self._u64[INCARNATION // 8] = int.from_bytes(os.urandom(8), "little")
        self._header = self._header._replace(epoch=epoch)
        write_lane_header(self.segment.view, self._header)

    def stats(self) -> LaneStats:
        """The gauges. Any process that holds the lane may read them."""
        puts, full, doorbells, left = self._u64[PRODUCER_COUNTS // 8 : PRODUCER_COUNTS // 8 + 4].tolist()
        found = self._u64[CONSUMER_COUNTS // 8 + 2]
        head = self._u64[HEAD // 8]  # before the tail: the difference is never negative
        backlog = (self._u64[TAIL // 8] - head) & U64
        return LaneStats(puts, full, doorbells, max(left, found), backlog, self.capacity, self.state)

    def close(self) -> None:
        """Frees memory and descriptors. An open end keeps the mapping until it is closed."""
        if not self._open:
            return
        self._open = False
        self._u64.release()
        self._u32.release()
        self.segment.close()
        for fd in self._counters:
            os.close(fd)


def _new_counters() -> tuple[int, int]:
    try:
        return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    except OSError as error:
        raise StartupError(f"no eventfd for a lane: {error}; raise the limit of open files") from error
