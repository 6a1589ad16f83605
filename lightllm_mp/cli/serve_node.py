"""`lightllm-mp serve --node-rank N`: runs ranks of an engine whose first node is another machine, until a signal."""

from __future__ import annotations

import asyncio
import logging
import signal

from lightllm_mp.actors.supervision.node_agent import NodeAgent
from lightllm_mp.actors.supervision.systemd import sd_notify
from lightllm_mp.config import Config

log = logging.getLogger("lightllm_mp.node")


def serve_node(config: Config, key: bytes, parent_fd: int = -1) -> int:
    """Run until a signal stops the node. Returns the exit code. `parent_fd`: see serve.py."""
    return asyncio.run(_run(config, key, parent_fd))


async def _run(config: Config, key: bytes, parent_fd: int) -> int:
    agent, loop = NodeAgent(config, key), asyncio.get_running_loop()
    running = asyncio.ensure_future(agent.run())

    def end() -> None:
        if not running.cancelling():  # a second cancellation would disturb the end of the ranks
            sd_notify("STOPPING=1")
            running.cancel()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGCHLD, agent.reap_orphans)
    if parent_fd >= 0:
        loop.add_reader(parent_fd, end)
    engine = config.engine
    log.info("node %d of %d, with %d ranks", engine.node_rank, engine.nnodes, engine.ranks_per_node)
    sd_notify("READY=1")  # ready to join; only the first node knows when the engine is ready
    try:
        await running
    except asyncio.CancelledError:
        log.info("stopped")
    return 0
