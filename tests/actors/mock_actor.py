"""A worker actor without a model: instant tokens, and every wrong slot changes the answer (see tests/engine)."""

from __future__ import annotations

import os
import time
from collections import deque

from lightllm_mp.actors.runtime.actor import BlockingActor
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.errors import ModelError
from lightllm_mp.facts import EngineLimits, Facts, PooledFacts
from lightllm_mp.messages import Masks, Wire
from lightllm_mp.plan import MAX_ROW, ROWS_BYTES
from tests.scheduler.mock_worker import MockWorker

VOCABULARY, CONTEXT, ROWS, STEP_TOKENS = 256, 4096, 64, 512


class MockWorkerActor(BlockingActor):
    context, rows, step_tokens = CONTEXT, ROWS, STEP_TOKENS
    pooled: PooledFacts | None = None

    def __init__(self, launch: LaunchSpec, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(mailbox, stats)
        self._kv_tokens = launch.settings.engine.max_total_token_num or 20_000
        self._worker = self._fresh()
        self._plans: deque[bytes] = deque()
        self._masks: deque[bytes] = deque()
        self.facts = Facts(
            engine=EngineLimits(
                vocab_size=VOCABULARY,
                max_context=self.context,
                max_input=self.context - 1,
                kv_tokens=self._kv_tokens,
                rows=self.rows,
                step_tokens=self.step_tokens,
                run_ahead=max(0, launch.settings.engine.run_ahead),
                long_truncation_mode=launch.settings.engine.long_truncation_mode or "",
                pooled=self.pooled,
            ),
            model_name="mock",
            eos_ids=(0,),
            device="none",
            dtype="none",
        )

    def on_plan(self, plan: bytes) -> None:
        self._plans.append(plan)
        self._go_on()

    def on_message(self, peer: str, message: Wire) -> None:
        if isinstance(message, Masks):
            self._masks.append(message.bits)
            self._go_on()

    def on_reset(self) -> None:
        self._plans.clear()
        self._masks.clear()

    def _go_on(self) -> None:
        while self._plans and (self._masks or not self._waits(self._plans[0])):
            plan = self._plans.popleft()
            self._carry_out(plan, self._masks.popleft() if self._waits(plan) else b"")

    def _waits(self, plan: bytes) -> bool:
        """It needs masks."""
        return self._worker.waits(plan) > 0

    def _carry_out(self, plan: bytes, masks: bytes) -> None:
        self.mailbox.post(ROUTER, self._worker.step(plan, masks))

    def _fresh(self) -> MockWorker:
        return MockWorker(
            rows=self.rows,
            width=self.context + 1,
            kv_tokens=self._kv_tokens,
            vocab_size=VOCABULARY,
            checks=False,
            numbers=self.pooled.width if self.pooled is not None else 1,
        )


class LargeMockWorkerActor(MockWorkerActor):
    """With the default number of rows, and a context of 128k tokens."""

    context, rows, step_tokens = 1 << 17, 256, 8192


class EmbeddingMockWorkerActor(MockWorkerActor):
    """The longest rows, and as many in a step as its answer holds."""

    pooled = PooledFacts("embed", MAX_ROW)
    rows, step_tokens = ROWS_BYTES // (4 * MAX_ROW), 1 << 14


class PacedMockWorkerActor(MockWorkerActor):
    """A step takes as long as on a GPU."""

    def on_plan(self, plan: bytes) -> None:
        time.sleep(0.01)
        super().on_plan(plan)


class PacedLargeMockWorkerActor(PacedMockWorkerActor, LargeMockWorkerActor):
    """Both."""


class BrokenWorkerActor(MockWorkerActor):
    def __init__(self, launch: LaunchSpec, mailbox: Mailbox, stats: StatsPage) -> None:
        raise ModelError("the weights are made of cheese")


class PacedWorkerActor(MockWorkerActor):
    """A step takes as long as that of a model: the environment says how many seconds."""

    def _carry_out(self, plan: bytes, masks: bytes) -> None:
        time.sleep(float(os.environ["LIGHTLLM_TEST_STEP"]))
        super()._carry_out(plan, masks)
