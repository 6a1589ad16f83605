"""A rolling update as a cluster makes it: the Service still gives connections to a pod that is already told to end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.actors.embedded import in_time
from tests.actors.mock_server import write_mock_model
from tests.paths import ROOT

CLIENTS, SECONDS = 6, 60.0
LAG = 0.5
"""Seconds after the deletion of a pod in which the Service still chooses it."""
DELAY = 2.5
"""The pod's --drain-delay."""
BODY = {"inputs": "hello", "parameters": {"max_new_tokens": 20, "ignore_eos": True}}


class Pod:
    """A server process that has said that it serves."""

    def __init__(self, model: Path, delay: float) -> None:
        flags = ["--load-format", "dummy", "--port", "0", "--drain-delay", str(delay)]
        command = [sys.executable, "-m", "tests.actors.mock_server", "serve", "--model-dir", str(model), *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        self.open = self.late = 0
        self.ending = False
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.strip().startswith("url"):
                self.port = int(line.rsplit(":", 1)[1])
            if line.startswith("  try"):  # the last one of the block
                return
        raise AssertionError(f"ended with {self.process.wait()} before it served")

    async def ready(self) -> bool:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}/readiness") as reply,
        ):
            return reply.status == 200

    async def delete(self) -> int:
        """As the kubelet does it. Returns the exit code."""
        self.ending = True
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, 20)


class ClusterService:
    """Gives each new connection to one of its endpoints and never moves it, like kube-proxy."""

    def __init__(self, endpoints: list[Pod]) -> None:
        self.endpoints = endpoints

    async def start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pod = random.choice(self.endpoints)
        pod.open += 1
        pod.late += pod.ending
        with contextlib.suppress(ConnectionError):
            upstream, downstream = await asyncio.open_connection("127.0.0.1", pod.port)
            await asyncio.gather(_copy(reader, downstream), _copy(upstream, writer))
        pod.open -= 1
        writer.close()


async def _copy(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            to.write(data)
    to.close()


class Load:
    """Asks without a pause and never a second time; half of the clients keep their connections."""

    def __init__(self, port: int) -> None:
        self.url, self.count, self.over = f"http://127.0.0.1:{port}", 0, False
        self.refused: list[str] = []

    async def ask(self, keep: bool) -> None:
        connector = aiohttp.TCPConnector(force_close=not keep, limit=1)
        async with aiohttp.ClientSession(self.url, connector=connector) as session:
            while not self.over:
                try:
                    async with session.post("/generate", json=BODY) as reply:
                        text = await reply.text()
                        self.refused += [text] if reply.status != 200 else []
                except aiohttp.ClientError as error:
                    self.refused.append(repr(error))
                self.count += 1
                await asyncio.sleep(0.002)

    async def more(self, count: int) -> None:
        goal = self.count + count
        while self.count < goal:
            await asyncio.sleep(0.01)


@pytest.mark.timeout(120)
@in_time
async def test_a_rolling_update_refuses_nothing(tmp_path: Path) -> None:
    """maxSurge 1, maxUnavailable 0. In the end a pod without the delay is deleted, to show that the load notices."""
    model = write_mock_model(tmp_path / "model")
    pods = [await asyncio.to_thread(Pod, model, DELAY)]
    service = ClusterService(pods)
    listening = await service.start()
    load = Load(listening.sockets[0].getsockname()[1])
    try:
        async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(load.ask(keep=number % 2 == 0))
            await load.more(50)
            pods.append(await asyncio.to_thread(Pod, model, 0.0))
            old, new = pods
            assert await new.ready()
            await load.more(50)
            ending = asyncio.create_task(old.delete())
            await asyncio.sleep(LAG)
            while await old.ready():  # it hears of the signal a moment later
                await asyncio.sleep(0.01)
            service.endpoints = [new]
            assert await ending == 0
            await load.more(50)
            assert load.refused == []
            assert old.late  # connections that came after SIGTERM
            assert old.open == 0
            assert await new.delete() == 0
            await load.more(10)
            assert load.refused
            load.over = True
    finally:
        listening.close()
        for pod in pods:
            pod.process.kill()
            pod.process.wait(20)
