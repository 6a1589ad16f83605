"""A second server takes over the port: no request is lost, no connection is refused."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.actors.mock_server import write_mock_model
from tests.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SO_REUSEPORT and its filters are Linux")

CLIENTS, SECONDS = 6, 60.0
BODY = {"inputs": "hello", "parameters": {"max_new_tokens": 20, "ignore_eos": True}}


def start(model: Path, port: int) -> subprocess.Popen[str]:
    """Start a server and wait until it says that it serves."""
    flags = ["--model-dir", str(model), "--load-format", "dummy", "--port", str(port), "--reuse-port"]
    command = [sys.executable, "-m", "tests.actors.mock_server", "serve", *flags, "--log-level", "error"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("  try"):  # the last line of the block
            return process
    raise AssertionError(f"ended with {process.wait()} before it served")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        found: int = sock.getsockname()[1]
        return found


class Clients:
    """Clients that send requests without a pause, half of them on a new connection each time. An incomplete answer
    raises."""

    def __init__(self, port: int) -> None:
        self.url, self.answers, self.over = f"http://127.0.0.1:{port}", set[str](), False
        self.count = 0

    async def ask(self, keep: bool) -> None:
        connector = aiohttp.TCPConnector(force_close=not keep)
        async with aiohttp.ClientSession(self.url, connector=connector) as session:
            while not self.over:
                async with session.post("/generate", json=BODY) as reply:
                    text = await reply.text()
                    assert reply.status == 200, text
                    self.answers.add(text)
                    self.count += 1

    async def more(self, count: int) -> None:
        goal = self.count + count
        while self.count < goal:
            await asyncio.sleep(0.01)


@pytest.mark.timeout(120)
def test_rolling_restart(tmp_path: Path) -> None:
    model, port = write_mock_model(tmp_path / "model"), free_port()
    servers = [start(model, port)]

    async def main() -> None:
        clients = Clients(port)
        async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(clients.ask(keep=number % 2 == 0))
            await clients.more(100)
            servers.append(await asyncio.to_thread(start, model, port))
            await clients.more(100)
            servers[0].send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(servers[0].wait, 20) == 0
            await clients.more(100)
            clients.over = True
        assert len(clients.answers) == 1

    try:
        asyncio.run(main())
    finally:
        for server in servers:
            if server.poll() is None:
                os.kill(server.pid, signal.SIGTERM)
            server.wait(20)


def test_a_server_without_the_flag_keeps_its_port(tmp_path: Path) -> None:
    model = write_mock_model(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ["--model-dir", str(model), "--load-format", "dummy", "--port", str(port), "--reuse-port"]
        command = [sys.executable, "-m", "lightllm_mp", "serve", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 69
    assert done.stderr.splitlines() == [f"lightllm-mp: cannot listen on 127.0.0.1:{port}: Address already in use"]
