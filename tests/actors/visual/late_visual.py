"""A visual actor that hangs when it is started for the second time."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lightllm_mp.actors.runtime.launch_spec import LaunchSpec
from lightllm_mp.actors.runtime.mailbox import Mailbox
from lightllm_mp.actors.runtime.stats_page import StatsPage
from lightllm_mp.actors.visual.actor import VisualActor

MARKS = "LIGHTLLM_TEST_MARKS"
"""Environment variable: a folder in which each start leaves a file."""


class HangsOnce(VisualActor):
    def __init__(self, launch: LaunchSpec, mailbox: Mailbox, stats: StatsPage) -> None:
        marks = Path(os.environ[MARKS])
        number = len(list(marks.iterdir()))
        (marks / str(number)).touch()
        if number == 1:
            time.sleep(600)
        super().__init__(launch, mailbox, stats)
