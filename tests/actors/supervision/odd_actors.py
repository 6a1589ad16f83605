"""Mock workers, and a tokenizer, with the troubles of a real one. What replaces them has none, unless it says so."""

from __future__ import annotations

import os
import subprocess
import time

import numpy as np
from msgspec.structs import replace

from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.supervision.state_machine import STAGE_SHOWN
from lightllm_mp.actors.tokenizer import TokenizerActor
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.messages import Wire
from lightllm_mp.plan import SAMPLE, unpack
from tests.actors.mock_actor import MockWorkerActor

STEP = 50
"""The one that goes wrong."""
SLOW = 6.0
"""Seconds that a slow step takes."""
POISON = "~" * 16
POISON_IDS = [ord("~") - ord("!")] * len(POISON)
"""What the byte tokenizer makes of it."""


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


class NanActor(MockWorkerActor):
    """The logits of drawn sequences are NaN."""

    def on_plan(self, plan: bytes) -> None:
        done, seqs = self._worker.step(plan), unpack(plan).seqs
        rows = seqs[(seqs[:, 3] & SAMPLE) != 0, 0]
        drawn = np.array([self._worker._rule(row, "temperature") > 0 for row in rows], np.bool_)
        logprobs = np.where(drawn, np.nan, np.frombuffer(done.logprobs, "<f4")).astype("<f4")
        self.mailbox.post(ROUTER, replace(done, logprobs=logprobs.tobytes()))


class PoisonedActor(MockWorkerActor):
    """Dies of every prompt that holds POISON."""

    def on_plan(self, plan: bytes) -> None:
        if bytes(POISON_IDS) in bytes(unpack(plan).ids.values.astype("uint8")):
            os._exit(3)
        super().on_plan(plan)


class ParentActor(MockWorkerActor):
    """Has a child that ends by itself when the actor is gone."""

    def __init__(self, launch: LaunchSpec, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(launch, mailbox, stats)
        self.child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
