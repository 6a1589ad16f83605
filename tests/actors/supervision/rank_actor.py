"""A rank without a model: it waits for the other ranks in every step, and dies if they got a different plan."""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib
from pathlib import Path

from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.rank_actor import RankActor
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.facts import Facts
from lightllm_mp.messages import StepDone
from tests.actors.mock_actor import MockWorkerActor

CELL = struct.Struct("<QQ")
"""A checksum of all plans so far, then their number, which is written last. A rank has two, for even and odd steps."""


class MockRankActor(RankActor, MockWorkerActor):
    def __init__(self, launch: LaunchSpec, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(launch, mailbox, stats)
        self.ranks, self._rank = launch.settings.engine.tp, launch.rank
        fd = launch.meeting_fd
        if launch.meeting:  # ranks on several machines; those of a test share a folder
            fd = os.open(Path(launch.model.path) / launch.meeting, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, mmap.PAGESIZE)
        self._cells = mmap.mmap(fd, mmap.PAGESIZE)
        self._count = self._checksum = 0
        if self._rank:
            self.facts = Facts()

    def on_reset(self) -> None:
        """Resets without masks, because the other ranks wait inside these plans."""
        while self._plans:
            self._step(self._plans.popleft(), b"")
        super().on_reset()

    def _waits(self, plan: bytes) -> bool:
        return self._rank == 0 and super()._waits(plan)

    def _carry_out(self, plan: bytes, masks: bytes) -> None:
        done = self._step(plan, masks)
        if self._rank == 0:
            self.mailbox.post("router", done)

    def _step(self, plan: bytes, masks: bytes) -> StepDone:
        self._count += 1
        self._checksum = zlib.crc32(plan, self._checksum)
        self._meet()
        return self._worker.step(plan, masks)

    def _meet(self) -> None:
        """Like a collective operation: no rank goes on before all ranks have arrived."""
        for value, at in ((self._checksum, 0), (self._count, 8)):
            struct.pack_into("<Q", self._cells, self._at(self._rank) + at, value)
        pause = 20e-6
        for rank in range(self.ranks):
            while CELL.unpack_from(self._cells, self._at(rank))[1] != self._count:
                time.sleep(pause)
                pause = min(1.1 * pause, 2e-3)  # a lost rank never arrives
            if CELL.unpack_from(self._cells, self._at(rank))[0] != self._checksum:
                raise RuntimeError(f"rank {rank} was told another plan than rank {self._rank}")

    def _at(self, rank: int) -> int:
        return (2 * rank + self._count % 2) * CELL.size
