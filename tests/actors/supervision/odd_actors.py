"""Mock workers, and a tokenizer, that fail like real ones. Their replacements do not fail, unless stated."""

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
"""Number of the step that goes wrong."""
SLOW = 6.0
"""Duration of a slow step in seconds."""
POISON = "~" * 16
POISON_IDS = [ord("~") - ord("!")] * len(POISON)
"""POISON as ids of the byte tokenizer."""


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
        """Fail, in the middle of a step."""


class OutOfMemoryActor(OddActor):
    def trouble(self) -> None:
        raise MemoryError("CUDA out of memory")


class SlowStepActor(OddActor):
    def trouble(self) -> None:
        time.sleep(SLOW)


class SlowStartActor(MockWorkerActor):
    """Reports what it is doing, and starts slowly."""

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
    """Takes a quarter of a second per text."""

    def on_message(self, peer: str, message: Wire) -> None:
        time.sleep(0.25)
        super().on_message(peer, message)


class NanActor(MockWorkerActor):
    """Answers NaN logits for sequences with a temperature above 0."""

    def on_plan(self, plan: bytes) -> None:
        done, seqs = self._worker.step(plan), unpack(plan).seqs
        rows = seqs[(seqs[:, 3] & SAMPLE) != 0, 0]
        drawn = np.array([self._worker._rule(row, "temperature") > 0 for row in rows], np.bool_)
        logprobs = np.where(drawn, np.nan, np.frombuffer(done.logprobs, "<f4")).astype("<f4")
        self.mailbox.post(ROUTER, replace(done, logprobs=logprobs.tobytes()))


class PoisonedActor(MockWorkerActor):
    """Dies of every prompt that contains POISON."""

    def on_plan(self, plan: bytes) -> None:
        if bytes(POISON_IDS) in bytes(unpack(plan).ids.values.astype("uint8")):
            os._exit(3)
        super().on_plan(plan)


class ParentActor(MockWorkerActor):
    """Has a child process that ends by itself when the actor is gone."""

    def __init__(self, launch: LaunchSpec, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(launch, mailbox, stats)
        self.child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
