"""Guide actors that fail or are slow."""

from __future__ import annotations

import os
import time

from lightllm_mp.actors.guide import GuideActor
from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.facts import Facts
from lightllm_mp.messages import OpenGuide

POISON = "[~]{7}"
"""A regex at which the actor dies."""
SLOW = 2.0
"""Duration of a slow operation in seconds."""


class PoisonedGuideActor(GuideActor):
    """Dies while it compiles POISON."""

    def _compile(self, message: OpenGuide, epoch: int, facts: Facts) -> None:
        if message.guide.source == POISON:
            os._exit(3)
        super()._compile(message, epoch, facts)


class SlowGuideActor(GuideActor):
    """Compiles slowly."""

    def _compile(self, message: OpenGuide, epoch: int, facts: Facts) -> None:
        time.sleep(SLOW)
        super()._compile(message, epoch, facts)


class SlowStartGuideActor(GuideActor):
    """Its replacement starts slowly."""

    def __init__(self, launch: LaunchSpec, mailbox: Mailbox, stats: StatsPage) -> None:
        super().__init__(launch, mailbox, stats)
        if launch.facts is not None:
            time.sleep(SLOW)
