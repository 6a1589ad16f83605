"""Mock workers, and a tokenizer, with the troubles of a real one. What replaces them has none, unless it says so."""

from __future__ import annotations

import os
import time

from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.supervision.state_machine import STAGE_SHOWN
from lightllm_mp.actors.tokenizer import TokenizerActor
from lightllm_mp.messages import Wire
from tests.actors.mock_actor import MockWorkerActor

STEP = 50
"""The one that goes wrong."""
SLOW = 6.0
"""Seconds that a slow step takes."""


class OddActor(MockWorkerActor):
    def __init__(self, launch: LaunchSpec, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(launch, mailbox, stats)
        self.replaces = launch.facts is not None
        self._steps = 0

    def on_plan(self, plan: bytes) -> None:
        self._steps += 1
        if self._steps == STEP and not self.replaces:
            self.trouble()
        super().on_plan(plan)

    def trouble(self) -> None:
        """In the middle of its work."""


class OutOfMemoryActor(OddActor):
    def trouble(self) -> None:
        raise MemoryError("CUDA out of memory")


class SlowStepActor(OddActor):
    def trouble(self) -> None:
        time.sleep(SLOW)


class SlowStartActor(MockWorkerActor):
    """Says what it is doing, and takes long."""

    def __init__(self, launch: LaunchSpec, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(launch, mailbox, stats)
        self.stage("thinking")
        time.sleep(1.5 * STAGE_SHOWN)


class DiesAtEveryRestartActor(OddActor):
    def __init__(self, launch: LaunchSpec, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(launch, mailbox, stats)
        if self.replaces:
            os._exit(3)


class SlowTokenizerActor(TokenizerActor):
    """Every text takes it a quarter of a second."""

    def on_message(self, peer: str, message: Wire) -> None:
        time.sleep(0.25)
        super().on_message(peer, message)
