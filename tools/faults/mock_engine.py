"""An engine without a model: all processes of an engine, with a worker that answers at a steady pace."""

from __future__ import annotations

import functools

from lightllm_mp import server
from lightllm_mp.actors.supervision import supervisor
from lightllm_mp.actors.topology import Topology
from lightllm_mp.cli import serve_node
from tests.actors.embedded import mocked

PROGRAM = "import sys; from tools.faults.mock_engine import serve_mocked; sys.exit(serve_mocked())"
WORKERS = "tests.actors.mock_actor:PacedMockWorkerActor"


def serve_mocked() -> int:
    """The main program of the supervisor's process."""
    usual = supervisor.topology

    def topology(**values: object) -> Topology:
        return mocked(usual(**values), WORKERS)  # type: ignore[arg-type]

    supervisor.topology = topology
    serve_node.NodeAgent = functools.partial(serve_node.NodeAgent, program=WORKERS)  # type: ignore[assignment,misc]
    return server._child()
