"""A replica of a fleet whose engine has no model."""

from __future__ import annotations

from typing import Any

from lightllm_mp import server
from lightllm_mp.ray.replica import LightLLMReplica
from tools.faults.mock_engine import PROGRAM


class MockReplica(LightLLMReplica):
    def __init__(self, *arguments: Any) -> None:
        server.PROGRAM = PROGRAM  # of this process, which is the replica's
        super().__init__(*arguments)
