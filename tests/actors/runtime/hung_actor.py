"""Worker actors that hang when they are asked for their first step."""

from __future__ import annotations

import time

from lightllm_mp.actors.runtime.actor import BlockingActor
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.facts import EngineLimits, Facts


class HangingActor(BlockingActor):
    def __init__(self, launch: LaunchSpec, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(mailbox, stats)
        self.facts = Facts(
            engine=EngineLimits(
                vocab_size=256,
                max_context=4096,
                max_input=4095,
                kv_tokens=20_000,
                rows=64,
                step_tokens=512,
            ),
            model_name="hung",
            eos_ids=(0,),
            device="none",
            dtype="none",
        )


class LoopingActor(HangingActor):
    def on_plan(self, plan: bytes) -> None:
        self.spin_for_ever()

    def spin_for_ever(self) -> None:
        while True:
            pass


class SleepingActor(HangingActor):
    def on_plan(self, plan: bytes) -> None:
        self.sleep_for_ever()

    def sleep_for_ever(self) -> None:
        time.sleep(3600)


class SlowStartActor(HangingActor):
    def __init__(self, launch: LaunchSpec, mailbox: Mailbox, stats: StatsPage) -> None:
        time.sleep(3600)
        super().__init__(launch, mailbox, stats)
