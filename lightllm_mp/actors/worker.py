"""The worker actor: one rank of the model. It turns plans into sampled ids; it knows slots and rows, and no request."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import NoReturn

from lightllm_mp.actors.rank import RankActor
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.engine.build import BuiltEngine, build_engine
from lightllm_mp.messages import Facts, StepDone
from lightllm_mp.shm import Segment

log = logging.getLogger("lightllm_mp.worker")

LOOK_AGAIN = 200e-6
"""Seconds between two looks at a device that is computing; nobody looks at an idle one."""

STUCK = 4.0
"""A device that computes one step for this many watchdog timeouts will not finish it."""


class WorkerActor(RankActor):
    def __init__(self, birth: LaunchSpec, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(mailbox, stats)
        self.ranks = birth.config.engine.tp
        self._birth = birth
        self._engine: BuiltEngine | None = None
        self._images: Segment | None = None
        self._steps = 0
        self._step_seconds = 0.0

    def start(self) -> Facts:
        config = self._birth.config
        self._engine = build_engine(
            Path(self._birth.model_path),
            config.model,
            config.engine,
            progress=lambda done, total: self.report("weights", done, total),
            stage=self.stage,
            kv_tokens=self._birth.facts.engine.kv_tokens if self._birth.facts else None,
            rank=self._birth.rank,
            meeting=f"/proc/self/fd/{self._birth.meeting_fd}",
        )
        if self._birth.images_fd >= 0:
            self._images = Segment.attach(self._birth.images_fd)
            self._engine.executor.images(self._images.view)
        return self._engine.facts if self._birth.rank == 0 else Facts()

    def run(self) -> None:
        super().run()
        if self.ranks > 1:
            # Communicators would be torn down one after the other, each waiting for peers that are leaving too.
            _leave(0)

    def on_reset(self) -> None:
        assert self._engine is not None
        self._engine.executor.reset()

    def on_plan(self, plan: bytes) -> None:
        assert self._engine is not None
        self._engine.executor.submit(plan)

    def after_batch(self) -> None:
        """Answer every step that is done. While the device computes, the next plan is submitted as soon as it comes."""
        assert self._engine is not None
        executor = self._engine.executor
        patience = STUCK * self._birth.config.supervisor.watchdog_timeout
        since = time.monotonic()
        while executor.pending:
            if executor.ready:
                self._answer(executor.collect())
                since = time.monotonic()
            elif time.monotonic() - since > patience:
                log.critical("the device has computed one step for more than %.0f s", patience)
                _leave(1)
            elif self.mailbox.wait(LOOK_AGAIN):
                self.handle(self.mailbox.receive())

    def _answer(self, done: StepDone) -> None:
        if self._birth.rank == 0:
            self.mailbox.post(ROUTER, done)
        self._steps += 1
        self._step_seconds += done.seconds
        self.stats.write({"steps": self._steps, "step_seconds": self._step_seconds, "last_step": done.seconds})


def _leave(code: int) -> NoReturn:
    """End this process without waiting for its device."""
    logging.shutdown()
    os._exit(code)
