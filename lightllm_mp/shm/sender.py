"""The producing end of a lane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lightllm_mp.errors import StartupError
from lightllm_mp.shm import eventfd_producer
from lightllm_mp.shm.doorbell import Bell
from lightllm_mp.shm.implementation import extension
from lightllm_mp.shm.lane import Lane
from lightllm_mp.shm.layout import KIND_MESSAGE


class _TryPut(Protocol):
    def __call__(self, data: bytes, kind: int = KIND_MESSAGE) -> bool: ...


class _PutMany(Protocol):
    def __call__(self, records: Sequence[bytes], kind: int = KIND_MESSAGE) -> int: ...


class Sender:
    """Puts records into one lane. For one thread; a lane has one Sender at a time.

    try_put(data, kind)     True: the record is published, and the consumer is woken if it sleeps. False: no room; the
                            own bell will ring as soon as half of the lane is free.
    put_many(records, kind) publishes as many records as fit, in order, at once and with at most one doorbell. Returns
                            their number. If some are left, the own bell will ring as for try_put.

    Both raise ValueError for a record longer than `max_record` bytes (nothing is published then) and LaneClosed if the
    lane is closed or poisoned.
    """

    try_put: _TryPut
    put_many: _PutMany

    def __init__(self, lane: Lane, own: Bell, peer: Bell) -> None:
        self.lane = lane
        self.max_record = lane.capacity // 8
        self._peer = peer
        self._end: Any
        if lane.implementation == "python":
            self._end = eventfd_producer.Producer(lane, own, peer)
        else:
            self._end = require_extension().Producer(lane.segment.map, peer.page.map, peer.event_fd)
        # The end's own methods: a Python frame around each would cost as much as the put.
        self.try_put = self._end.try_put
        self.put_many = self._end.put_many

    def finish(self) -> None:
        """Closes the lane for further puts and wakes the consumer, which can drain the rest."""
        self.lane.finish()
        self._peer.ring()

    def close(self) -> None:
        """Frees the memory of this end. The state of the lane does not change."""
        self._end.close()


def require_extension() -> Any:
    """The compiled module. StartupError if it is not built."""
    module = extension()
    if module is None:
        raise StartupError("the lane is for the c ring, but the extension lightllm_mp.shm._ring is not built")
    return module
