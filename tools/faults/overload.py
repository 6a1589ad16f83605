"""Sends far more requests than a server takes and checks that it refuses the rest quickly and stays healthy.

    python -m tools.faults.overload [--requests 10000] [--rate 0] [--mock] [--tokens 16] [--max-live 1000]

Starts a server (the default model; with --mock one with instant tokens), sends all requests at once or at --rate a
second, each on its own connection, and prints one JSON line a figure: how many were answered and refused, how long a
refusal took in the server (from its access log: headers there to response) and at the client (request sent to first
byte; the client shares the machine's cores), the Retry-After that clients got, how long the accepted ones really took,
how long /health took meanwhile, and the resident memory of all processes before and at its maximum. Exit code 1 if a
request got neither an answer nor a refusal with Retry-After, or if the server is not idle and healthy afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.actors.mock_server import write_mock_model
from tools.harness.command_line import ToolParser
from tools.harness.figures import Figures, spread
from tools.harness.metrics import parse
from tools.harness.procfs import MIB, actors, resident

LINGER = 300.0
"""Most seconds to wait for answers."""


@dataclass
class Outcome:
    sent: float = 0.0
    first: float = 0.0
    ended: float = 0.0
    data: bytes = b""

    @property
    def status(self) -> int:
        return int(self.data[9:12]) if self.data.startswith(b"HTTP/1.1 ") and self.data.endswith(b"}") else 0

    @property
    def retry_after(self) -> int | None:
        found = re.search(rb"\r\nRetry-After: (\d+)\r\n", self.data.split(b"\r\n\r\n")[0] + b"\r\n", re.IGNORECASE)
        return int(found[1]) if found else None


class Asker(asyncio.Protocol):
    """One request on one connection; `done` when the server closes it."""

    def __init__(self, request: bytes, outcome: Outcome, done: asyncio.Future[None]) -> None:
        self._request, self._outcome, self._done = request, outcome, done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._outcome.sent = time.monotonic()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._outcome.first = self._outcome.first or time.monotonic()
        self._outcome.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self._outcome.ended = time.monotonic()
        if not self._done.done():
            self._done.set_result(None)


class Watch:
    """Samples the server from outside every tenth of a second."""

    def __init__(self, pid: int, url: str) -> None:
        self._pid, self._url = pid, url
        self.memory: list[float] = [memory(pid)]
        """MiB of all processes; the first sample comes before the first request."""
        self.health: list[float] = []

    async def run(self) -> None:
        while True:
            self.memory.append(memory(self._pid))
            self.health.append(await asyncio.to_thread(self._look))
            await asyncio.sleep(0.1)

    def _look(self) -> float:
        begin = time.monotonic()
        with urllib.request.urlopen(f"{self._url}/health", timeout=30) as reply:
            assert reply.status == 200
        return time.monotonic() - begin


def memory(supervisor: int) -> float:
    """Resident memory of all processes in MiB; shared memory counts in each."""
    return sum(resident(pid) for pid in actors(supervisor).values()) / MIB


async def flood(url: str, requests: int, rate: float, tokens: int) -> list[Outcome]:
    host, port = url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    outcomes, waits = [Outcome() for _ in range(requests)], []

    async def ask(number: int) -> None:
        parameters = {"max_new_tokens": tokens, "ignore_eos": True}
        body = json.dumps({"inputs": f"Say something about the number {number}.", "parameters": parameters})
        head = f"POST /generate HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        done = loop.create_future()
        await loop.create_connection(lambda: Asker(f"{head}{body}".encode(), outcomes[number], done), host, int(port))
        await done

    begin = time.monotonic()
    for number in range(requests):
        if rate and (early := begin + number / rate - time.monotonic()) > 0:
            await asyncio.sleep(early)
        waits.append(asyncio.create_task(ask(number)))
    await asyncio.wait(waits, timeout=LINGER)
    for task in waits:
        task.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    return outcomes


def start(flags: argparse.Namespace, folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    log = folder / "log"
    module, more = "lightllm_mp", list[str]()
    if flags.mock:
        module = "tests.actors.mock_server"
        more = ["--model-dir", str(write_mock_model(folder / "model")), "--load-format", "dummy"]
    command = [sys.executable, "-m", module, "serve", "--port", "0", "--log-json", *more]
    command += ["--max-live-requests", str(flags.max_live)]
    command += ["--max-connections-per-address", "0"]  # one client acts for all
    with log.open("wb") as file:
        return subprocess.Popen(command, stderr=file), log


def records(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def wait_for_url(server: subprocess.Popen[bytes], log: Path) -> str:
    while server.poll() is None:
        for record in records(log):
            if "url" in record:
                return str(record["url"])
        time.sleep(0.1)
    raise SystemExit(f"the server ended: {log.read_text()}")


def report(outcomes: list[Outcome], watch: Watch, log: Path, live: float) -> bool:
    """Whether every request got an answer or a Retry-After and nothing is left."""
    statuses = Counter(outcome.status for outcome in outcomes)
    refused = [outcome for outcome in outcomes if outcome.status in (429, 503)]
    answered = [outcome for outcome in outcomes if outcome.status == 200]
    in_server = [float(str(r["total_ms"])) / 1e3 for r in records(log) if r.get("status") in (429, 503)]
    told = [outcome.retry_after for outcome in refused]
    begin = min(outcome.sent for outcome in outcomes)
    figures = Figures()
    figures.add("requests", len(outcomes), statuses=dict(sorted(statuses.items())))
    figures.add("answered", len(answered))
    figures.add("refused", len(refused))
    figures.add("refusal in the server", spread(in_server))
    figures.add("refusal at the client", spread(outcome.first - outcome.sent for outcome in refused))
    figures.add("Retry-After", f"{min(filter(None, told), default=0)} to {max(filter(None, told), default=0)}", "s")
    figures.add("last answer after", max((outcome.ended for outcome in answered), default=begin) - begin, "s")
    figures.add("/health meanwhile", spread(watch.health))
    figures.add("resident memory before", watch.memory[0], "MiB")
    figures.add("resident memory at the most", max(watch.memory), "MiB")
    figures.add("live afterwards", live)
    return len(answered) + len(refused) == len(outcomes) and None not in told and live == 0


async def run(flags: argparse.Namespace, server: subprocess.Popen[bytes], log: Path) -> bool:
    url = wait_for_url(server, log)
    watch = Watch(server.pid, url)
    watching = asyncio.create_task(watch.run())
    outcomes = await flood(url, flags.requests, flags.rate, flags.tokens)
    watching.cancel()
    await asyncio.sleep(1.0)  # for the log's last lines
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        live = parse(reply.read().decode())["live_requests"]
    return report(outcomes, watch, log, live)


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, mock=True, requests=60, max_live=20)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: all at once")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--max-live", type=int, default=1000, help="the server's --max-live-requests")
    parser.add_argument("--mock", action="store_true", help="workers without a model, instant tokens")
    flags = parser.parse(argv)
    with tempfile.TemporaryDirectory(prefix="overload-") as name:
        server, log = start(flags, Path(name))
        try:
            good = asyncio.run(run(flags, server, log))
        finally:
            server.terminate()
            server.wait(60)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
