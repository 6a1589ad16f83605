"""Measures the cost of an API's format: streams of OpenAI's APIs against /generate_stream, through one http process.

    python -m tools.bench.api_formats [--streams 512] [--tokens 64] [--rounds 5]

Starts a server whose workers have no model and answer at once. Each round sends all requests of one API at the same
time, the APIs in turns. Prints tokens a second, the http process's CPU time per token, and the median ratio of each to
/generate_stream of the same round. The client is one process on the same machine; it only counts events.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.actors.mock_server import write_mock_model
from tools.faults.overload import wait_for_url
from tools.harness.command_line import ToolParser
from tools.harness.figures import Figures
from tools.harness.procfs import TICKS, actors, cpu_seconds

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
HELLO = [{"role": "user", "content": "hello"}]
TOKENS = "max tokens"
NATIVE = "/generate_stream"
BODIES: dict[str, dict[str, Any]] = {
    NATIVE: {"inputs": "hello", "parameters": {"max_new_tokens": TOKENS, "ignore_eos": True}},
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0},
    "/v1/completions": {"prompt": "hello", "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0},
}
"""The request of each API."""


@dataclass
class Round:
    seconds: float
    cpu: float
    """CPU time of the http process in seconds."""
    tokens: int

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    @property
    def each(self) -> float:
        """CPU time per token in microseconds."""
        return 1e6 * self.cpu / self.tokens


@dataclass
class Stream(asyncio.Protocol):
    """Sends one request on one connection and reads until the server closes it."""

    request: bytes
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    status: bytes = b""
    events: int = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.status = self.status or data[9:12]
        self.events += data.count(b"data:")

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set_result(None)


def request_of(api: str, tokens: int) -> bytes:
    body = json.dumps(BODIES[api] | {"stream": True}).replace(json.dumps(TOKENS), str(tokens)).encode()
    head = f"POST {api} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def run_round(url: str, http: int, api: str, streams: int, tokens: int) -> Round:
    """Raises SystemExit if a stream fails or is short."""
    loop, address = asyncio.get_running_loop(), urlsplit(url)
    request = request_of(api, tokens)
    cpu, begin = cpu_seconds(http), time.perf_counter()
    found = await asyncio.gather(
        *(
            loop.create_connection(lambda: Stream(request), str(address.hostname), address.port or 80)
            for _ in range(streams)
        )
    )
    await asyncio.gather(*(stream.done for _, stream in found))
    seconds = time.perf_counter() - begin
    if bad := [stream for _, stream in found if stream.status != b"200" or stream.events < tokens]:
        raise SystemExit(f"{api}: {len(bad)} streams failed, one with {bad[0].status!r}, {bad[0].events} events")
    return Round(seconds, max(cpu_seconds(http) - cpu, 1 / TICKS), streams * tokens)


async def run(flags: argparse.Namespace, server: subprocess.Popen[bytes], log: Path) -> None:
    url = wait_for_url(server, log)
    http = actors(server.pid)["http"]
    rounds: dict[str, list[Round]] = {api: [] for api in BODIES}
    for number in range(flags.rounds + 1):
        for api, done in rounds.items():
            one = await run_round(url, http, api, flags.streams, flags.tokens)
            if number:  # the first round warms up
                done.append(one)
    figures = Figures()
    for api, done in rounds.items():
        figures.add(f"{api}: tokens", statistics.median(one.rate for one in done), "1/s")
        figures.add(f"{api}: CPU of http per token", statistics.median(one.each for one in done), "us")
        pairs = list(zip(done, rounds[NATIVE], strict=True))
        figures.add(f"{api}: tokens a second", statistics.median(one.rate / native.rate for one, native in pairs), "x")
        figures.add(f"{api}: CPU", statistics.median(one.each / native.each for one, native in pairs), "x")
    figures.table()


def start(flags: argparse.Namespace, folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    model, log = write_mock_model(folder / "model"), folder / "log"
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": TEMPLATE}))
    command = [sys.executable, "-m", "tests.actors.mock_server", "serve", "--model-dir", str(model), "--port", "0"]
    command += ["--load-format", "dummy", "--log-json", "--disable-access-log", "--max-connections-per-address", "0"]
    command += ["--max-live-requests", str(2 * flags.streams), "--max-total-token-num", "200000"]
    with log.open("wb") as file:
        return subprocess.Popen(command, stderr=file), log


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, streams=4, tokens=8, rounds=1)
    parser.add_argument("--streams", type=int, default=512, help="at once")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse(argv)
    with tempfile.TemporaryDirectory(prefix="api-formats-") as name:
        server, log = start(flags, Path(name))
        try:
            asyncio.run(run(flags, server, log))
        finally:
            server.terminate()
            server.wait(60)
    return 0


if __name__ == "__main__":
    sys.exit(main())
