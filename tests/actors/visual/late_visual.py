"""A visual actor that hangs when it is started for the second time."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lightllm_mp.actors.visual.actor import VisualActor
from lightllm_mp.messages import Facts

MARKS = "LIGHTLLM_TEST_MARKS"
"""Environment variable: a folder in which each start leaves a file."""


class HangsOnce(VisualActor):
    def start(self) -> Facts:
        marks = Path(os.environ[MARKS])
        number = len(list(marks.iterdir()))
        (marks / str(number)).touch()
        if number == 1:
            time.sleep(600)
        return super().start()
