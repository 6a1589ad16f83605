"""The worker actor: one rank of the model. It turns plans into sampled ids. It knows slots and rows, not requests."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from typing import NoReturn

from lightllm_mp.actors.runtime.actor_settings import WorkerSettings
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.rank_actor import RankActor
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.engine.build import build_engine
from lightllm_mp.messages import Masks, StepDone, Wire
from lightllm_mp.shm import Segment

log = logging.getLogger("lightllm_mp.worker")

LOOK_AGAIN = 200e-6
"""Seconds between two polls of a device that is computing; an idle device is not polled."""

STUCK = 4.0
"""A device that takes more than this many watchdog timeouts for one step counts as hung."""


class WorkerActor(RankActor):
    def __init__(self, launch: LaunchSpec[WorkerSettings], mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(mailbox, stats)
        settings = launch.settings
        self.ranks = settings.engine.tp
        self._rank = launch.rank
        self._patience = STUCK * settings.watchdog_timeout
        self._steps = 0
        self._step_seconds = 0.0
        self._publish(0.0)  # a rate needs a counter's beginning
        self._plans: deque[bytes] = deque()
        """Plans behind a step that waits for its masks."""
        self._masks: dict[int, bytes] = {}
        """Masks by step, until the step has its logits."""
        engine = build_engine(
            launch.model,
            settings.model,
            settings.engine,
            progress=lambda done, total: self.report("weights", done, total),
            stage=self.stage,
            promised=launch.facts.engine if launch.facts else None,
            rank=launch.rank,
            meeting=launch.meeting or f"/proc/self/fd/{launch.meeting_fd}",
            meeting_fd=launch.meeting_fd if launch.meeting else -1,
        )
        self._executor = engine.executor
        if launch.images_fd >= 0:
            self._images = Segment.attach(launch.images_fd)
            self._executor.images(self._images.view)
        if launch.rank == 0:
            self.facts = engine.facts

    def run(self) -> None:
        super().run()
        if self.ranks > 1:
            self._give_up_masks()
            # A normal exit tears down communicators one by one, and each waits for peers that are leaving too.
            _leave(0)

    def on_reset(self) -> None:
        if self.ranks > 1:
            self._give_up_masks()
        self._plans.clear()
        self._masks.clear()
        self._executor.reset()

    def _give_up_masks(self) -> None:
        """Carry out all plans without masks: the other ranks wait inside them for this one's ids."""
        while self._executor.waiting is not None or self._plans:
            if self._executor.waiting is not None:
                self._executor.resume(None)
            else:
                self._executor.submit(self._plans.popleft())

    def on_plan(self, plan: bytes) -> None:
        self._plans.append(plan)
        self._go_on()

    def on_message(self, peer: str, message: Wire) -> None:
        if isinstance(message, Masks):
            self._masks[message.step] = message.bits
            self._go_on()

    def _go_on(self) -> None:
        """Start plans, in order, up to one whose masks have not come. An answer does not wait for the plan behind it,
        which may wait for masks that need the answer."""
        executor = self._executor
        while True:
            if (step := executor.waiting) is not None:
                if (bits := self._masks.pop(step, None)) is None:
                    return
                executor.resume(bits)
                while executor.ready:
                    self._answer(executor.collect())
            elif self._plans:
                executor.submit(self._plans.popleft())
            else:
                return

    def after_batch(self) -> None:
        """Answer every step that is done. While the device computes, submit the next plan as soon as it comes."""
        executor, patience = self._executor, self._patience
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
        if self._rank == 0:
            self.mailbox.post(ROUTER, done)
        self._steps += 1
        self._step_seconds += done.seconds
        self._publish(done.seconds)

    def _publish(self, newest: float) -> None:
        self.stats.write({"steps": self._steps, "step_seconds": self._step_seconds, "last_step": newest})


def _leave(code: int) -> NoReturn:
    """End this process without waiting for its device."""
    logging.shutdown()
    os._exit(code)
