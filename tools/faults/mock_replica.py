"""A replica of a fleet whose engine has no model."""

from __future__ import annotations

from typing import Any

from lightllm_mp import server
from lightllm_mp.ray.remote_node import RemoteNode
from lightllm_mp.ray.replica import LightLLMReplica
from tools.faults.mock_engine import PROGRAM


class MockNode(RemoteNode):
    def __init__(self, *arguments: Any) -> None:
        server.PROGRAM = PROGRAM
        super().__init__(*arguments)


class MockReplica(LightLLMReplica):
    NODE = MockNode

    def __init__(self, *arguments: Any) -> None:
        server.PROGRAM = PROGRAM  # applies to this process, the replica's
        super().__init__(*arguments)
