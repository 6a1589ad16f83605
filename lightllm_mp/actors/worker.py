"""The worker actor: one rank of the model. It turns plans into sampled ids; it knows slots and rows, and no request."""

from __future__ import annotations

import gc
from pathlib import Path

from lightllm_mp.actors.base import BlockingActor
from lightllm_mp.actors.birth import Birth
from lightllm_mp.actors.mailbox import Mailbox
from lightllm_mp.actors.stats import StatsPage
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.engine.setup import Engine, build_engine
from lightllm_mp.messages import Facts


class WorkerActor(BlockingActor):
    def __init__(self, birth: Birth, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(mailbox, stats)
        self._birth = birth
        self._engine: Engine | None = None
        self._steps = 0

    def start(self) -> Facts:
        config = self._birth.config
        self._engine = build_engine(
            Path(self._birth.model_path),
            config.model,
            config.engine,
            progress=lambda done, total: self.report("weights", done, total),
            kv_tokens=self._birth.facts.kv_tokens if self._birth.facts else None,
        )
        # What start-up made lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        return self._engine.facts

    def on_reset(self) -> None:
        assert self._engine is not None
        self._engine.executor.reset()

    def on_plan(self, plan: bytes) -> None:
        assert self._engine is not None
        self._engine.executor.submit(plan)
        done = self._engine.executor.collect()
        if self._birth.rank == 0:
            self.mailbox.post(ROUTER, done)
        self._steps += 1
        self.stats.write({"steps": self._steps, "step_seconds": done.seconds})
