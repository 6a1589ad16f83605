"""The ranks of a tensor-parallel model: where they find each other, and whether all were sent the same steps."""

from __future__ import annotations

import os

from lightllm_mp.actors.supervision.shared_memory import SharedMemory
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.shm.memfd import create_memfd


class WorkerGroup:
    """`members`: the names of the ranks; empty for a single worker, which needs no group."""

    def __init__(self, members: tuple[str, ...], wiring: SharedMemory) -> None:
        self.members = members
        self._wiring = wiring
        self.meeting = create_memfd("meeting") if members else -1
        """Descriptor of the nameless file in which the members find each other; -1 without members."""
        self._before = self._plans()

    def part(self) -> None:
        """All members are gone: their successors meet in a new file."""
        fresh = create_memfd("meeting")
        self.close()
        self.meeting = fresh

    def close(self) -> None:
        if self.meeting >= 0:
            os.close(self.meeting)

    def begin(self) -> None:
        """An epoch begins: no member has been sent a plan in it."""
        self._before = self._plans()

    @property
    def torn(self) -> bool:
        """Not every member has been sent the last plan of this epoch: a rank that has it waits for ever."""
        return len({now - before for now, before in zip(self._plans(), self._before, strict=True)}) > 1

    def _plans(self) -> list[int]:
        """How many plans each member was sent, ever."""
        return [self._wiring.lane(ROUTER, name).stats().puts for name in self.members]
