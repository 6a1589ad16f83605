"""Ranks of two machines: every stream goes on without a difference when a rank, the agent or the network fails. The
ranks have no model; the agent of the other machine runs in this process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from lightllm_mp.actors.http.security.keys import RELAY_ENVIRONMENT
from lightllm_mp.actors.runtime import node_link
from lightllm_mp.actors.supervision import node_agent
from lightllm_mp.actors.supervision.node_agent import NodeAgent
from lightllm_mp.actors.supervision.state_machine import State
from lightllm_mp.actors.topology import EMBEDDED, Child, Topology, topology
from lightllm_mp.config import Config
from tests.actors.embedded import Embedded, Shared, config, embedded, mocked, on_shared
from tests.actors.supervision.test_worker_group import streams, undisturbed

RANKS, NODES, KEY = 4, 2, "of-the-nodes-of-this-test"
PROGRAM = "tests.actors.supervision.rank_actor:MockRankActor"
REMOTE = ("worker2", "worker3")


@pytest.fixture(autouse=True, scope="module")
def key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RELAY_ENVIRONMENT, KEY)
        yield


def free_port() -> int:
    """A free port. The next port is free, too."""
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            if port < 65000:
                with socket.create_server(("127.0.0.1", port + 1)):
                    return port


def settings() -> Config:
    base = config(run_ahead=1, watchdog_timeout=1.0)
    engine = msgspec.structs.replace(base.engine, tp=RANKS, nnodes=NODES, nccl_port=free_port())
    return msgspec.structs.replace(base, engine=engine)


def plan() -> Topology:
    return mocked(topology(ranks=RANKS, nodes=NODES, front=EMBEDDED, max_body=1 << 20), PROGRAM)


class Cable:
    """A proxy between the agent and the first machine that a test can cut or freeze."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = asyncio.Event()
        self._open.set()
        self._writers: list[asyncio.StreamWriter] = []

    async def lay(self) -> int:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def freeze(self) -> None:
        """Hold back all bytes, and tell neither end."""
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    def close(self) -> None:
        self.cut()
        self._server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        self._writers += [writer, back]
        await asyncio.gather(self._carry(reader, back), self._carry(there, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._open.wait()
                writer.write(data)
        writer.transport.abort()


class Agent:
    """The agent of the other machine, behind a cable."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.cable = Cable(config.engine.nccl_port + 1)

    async def join(self, key: str = KEY) -> None:
        """Join the first machine with a key, which may be wrong."""
        port = await self.cable.lay()
        engine = msgspec.structs.replace(self._config.engine, node_rank=1, nccl_port=port - 1)
        own = msgspec.structs.replace(self._config, engine=engine)
        self._running = asyncio.create_task(NodeAgent(own, key.encode(), PROGRAM).run())

    async def leave(self) -> None:
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running
        self.cable.close()


@dataclass
class Nodes(Embedded):
    """An engine of two machines."""

    agent: Agent
    expected: list[tuple[list[int], str]]
    """The text of its streams in an undisturbed run."""


@contextlib.asynccontextmanager
async def nodes(folder: Path) -> AsyncIterator[Nodes]:
    config = settings()
    agent = Agent(config)
    await agent.join()
    try:
        async with embedded(folder, config, plan()) as engine:
            expected = await undisturbed(engine)
            yield Nodes(engine.supervisor, engine.front, engine.running, agent, expected)
    finally:
        await agent.leave()


def remote_ranks() -> dict[str, int]:
    """The agent's processes: name -> pid."""
    found = {}
    for file in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for pid in file.read_text().split():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                found |= {name: int(pid) for name in REMOTE if name in words}
    return found


def everybody(engine: Embedded) -> dict[str, int]:
    return {name: engine.pid(name) for name in ("worker0", "worker1", "node1")} | remote_ranks()


async def replaced(engine: Embedded, before: dict[str, int]) -> None:
    """Wait until all ranks of both machines have been replaced."""
    while len(now := everybody(engine)) < len(before) or set(now.values()) & set(before.values()):
        await asyncio.sleep(0.01)
    await engine.until(State.RUNNING)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared[Nodes]]:
    """An engine that plans a step ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node_link, "SILENCE", 4.0)  # of the agent
        engine = Shared(lambda: nodes(tmp_path_factory.mktemp("nodes")))
        yield engine
        engine.close()
    assert not remote_ranks()


@on_shared
async def test_a_rank_of_the_other_machine_dies_or_hangs(engine: Nodes) -> None:
    assert set(remote_ranks()) == set(REMOTE)
    for victim, how in (("worker3", signal.SIGKILL), ("worker2", signal.SIGSTOP)):
        before = everybody(engine)
        tasks = await streams(engine)
        await asyncio.sleep(random.random() / 4)
        os.kill(before[victim], how)
        assert await asyncio.gather(*tasks) == engine.expected
        await replaced(engine, before)
    assert (await engine.until_idle())["kv_used"] == 0


@on_shared
async def test_ranks_outlive_the_others(engine: Nodes) -> None:
    for victim in ("detokenizer", "router"):
        before = everybody(engine)
        tasks = await streams(engine)
        await asyncio.sleep(random.random() / 4)
        engine.kill(victim)
        assert await asyncio.gather(*tasks) == engine.expected
        # A router that dies between two sends leaves some ranks in a step that the others never get.
        assert everybody(engine) == before or victim == "router"


@on_shared
async def test_the_cable_is_cut_or_frozen(engine: Nodes) -> None:
    """It happens in mid-stream. When the cable is frozen, neither end is told."""
    before = everybody(engine)
    tasks = await streams(engine)
    await asyncio.sleep(0.1)
    engine.agent.cable.cut()
    assert await asyncio.gather(*tasks) == engine.expected
    await replaced(engine, before)
    before = everybody(engine)
    tasks = await streams(engine)
    await asyncio.sleep(0.1)
    engine.agent.cable.freeze()
    while set(remote_ranks().values()) & set(before.values()):
        await asyncio.sleep(0.05)  # a machine that receives nothing ends its ranks
    engine.agent.cable.thaw()
    assert await asyncio.gather(*tasks) == engine.expected


@on_shared
async def test_a_machine_without_memory_is_tried_again(engine: Nodes) -> None:
    """It can start no rank, and reports a failed start."""
    before = everybody(engine)
    refused = OSError(errno.ENOMEM, "Cannot allocate memory")
    kept, failing = node_agent.RankHost._start, [True, True]

    def start(host: node_agent.RankHost, child: Child) -> None:
        if child.name == REMOTE[1] and failing:
            failing.pop()
            raise refused
        kept(host, child)

    with mock.patch.object(node_agent.RankHost, "_start", start):
        tasks = await streams(engine)
        os.kill(before["worker2"], signal.SIGKILL)
        assert await asyncio.gather(*tasks) == engine.expected
    assert not failing
    await replaced(engine, before)


@on_shared
async def test_the_other_machine_goes_and_comes(engine: Nodes) -> None:
    """Requests wait for it. A machine with another key is refused."""
    tasks = await streams(engine)
    await asyncio.sleep(0.05)
    await engine.agent.leave()
    await engine.until(State.REPAIRING)
    assert not remote_ranks()
    await engine.agent.join("guessed")
    await asyncio.sleep(1.5)
    assert not remote_ranks()
    assert not any(task.done() for task in tasks)
    assert engine.supervisor.state is State.REPAIRING
    await engine.agent.leave()
    await engine.agent.join()
    assert await asyncio.gather(*tasks) == engine.expected
