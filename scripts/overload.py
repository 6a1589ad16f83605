"""Far more requests than a server takes: is the rest refused quickly, and does it live on?

    python scripts/overload.py [--requests 10000] [--rate 0] [--mock] [--tokens 16] [--max-live 1000]

Starts a server (the default model; with --mock one with instant tokens), sends all requests at once or at --rate a
second, each on its own connection, and prints a table and one JSON line a figure: how many were answered and refused,
how long a refusal took in the server (from its access log: headers there to response) and at the client (request sent
to first byte; the client shares the machine's cores), what clients were told to wait, how long the accepted ones really
took, how long /health took meanwhile, and the resident memory of all processes before and at the most. Exit code 1 if a
request got neither an answer nor a refusal with Retry-After, or if the server is not idle and healthy afterwards.
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
import urllib.request
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.faults.watch import family, resident
from tests.actors.mock_server import write_mock_model

ROOT = Path(__file__).resolve().parents[1]
LINGER = 300.0
"""Most seconds that answers are waited for."""


@dataclass
class Outcome:
    sent: float = 0.0
    first: float = 0.0
    ended: float = 0.0
    data: bytearray = field(default_factory=bytearray)

    @property
    def status(self) -> int:
        return int(self.data[9:12]) if self.data.startswith(b"HTTP/1.1 ") and self.data.endswith(b"}") else 0

    @property
    def retry_after(self) -> int | None:
        for line in self.data.split(b"\r\n\r\n")[0].split(b"\r\n"):
            if line.lower().startswith(b"retry-after:"):
                return int(line.split(b":")[1])
        return None


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
    """Samples the server from outside, every tenth of a second."""

    def __init__(self, pid: int, url: str) -> None:
        self._pid, self._url = pid, url
        self.memory: list[float] = [memory(pid)]
        """MiB of all processes; the first before anything was asked."""
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
    """Resident memory of all processes in MiB; what they share counts in each."""
    return sum(resident(pid) for pid in family(supervisor).values()) / (1 << 20)


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
    with log.open("wb") as file:
        return subprocess.Popen(command, stderr=file, cwd=ROOT), log


def records(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def wait_for_url(server: subprocess.Popen[bytes], log: Path) -> str:
    while server.poll() is None:
        for record in records(log):
            if "url" in record:
                return str(record["url"])
        time.sleep(0.1)
    raise SystemExit(f"the server ended: {log.read_text()}")


def spread(seconds: Iterable[float]) -> str:
    values = sorted(seconds)
    if not values:
        return "-"
    high = values[min(len(values) - 1, int(0.99 * len(values)))]
    return f"median {statistics.median(values) * 1e3:.1f}, 99 % {high * 1e3:.1f}, most {values[-1] * 1e3:.1f} ms"


def report(outcomes: list[Outcome], watch: Watch, log: Path) -> bool:
    statuses = Counter(outcome.status for outcome in outcomes)
    refused = [outcome for outcome in outcomes if outcome.status in (429, 503)]
    answered = [outcome for outcome in outcomes if outcome.status == 200]
    in_server = [float(str(r["total_ms"])) / 1e3 for r in records(log) if r.get("status") in (429, 503)]
    told = [outcome.retry_after for outcome in refused]
    begin = min(outcome.sent for outcome in outcomes)
    rows = {
        "requests": len(outcomes),
        "answered": len(answered),
        "refused": len(refused),
        "statuses": dict(sorted(statuses.items())),
        "refusal in the server": spread(in_server),
        "refusal at the client": spread(outcome.first - outcome.sent for outcome in refused),
        "Retry-After": f"{min(filter(None, told), default=0)} to {max(filter(None, told), default=0)} s",
        "last answer after": f"{max((o.ended for o in answered), default=begin) - begin:.1f} s",
        "/health meanwhile": spread(watch.health),
        "resident memory": f"{watch.memory[0]:.0f} MiB before, {max(watch.memory):.0f} MiB at the most",
    }
    for name, value in rows.items():
        print(f"{name:<24} {value}")
        print(json.dumps({"figure": name, "value": value}), file=sys.stderr)
    return len(answered) + len(refused) == len(outcomes) and None not in told


async def run(flags: argparse.Namespace, server: subprocess.Popen[bytes], log: Path) -> bool:
    url = wait_for_url(server, log)
    watch = Watch(server.pid, url)
    watching = asyncio.create_task(watch.run())
    outcomes = await flood(url, flags.requests, flags.rate, flags.tokens)
    watching.cancel()
    await asyncio.sleep(1.0)  # the log's last lines
    good = report(outcomes, watch, log)
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        live = [line for line in reply.read().decode().splitlines() if line.startswith("lightllm_live_requests")]
    print(f"{'live afterwards':<24} {live[0].split()[-1]}")
    return good and float(live[0].split()[-1]) == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: all at once")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--max-live", type=int, default=1000, help="the server's --max-live-requests")
    parser.add_argument("--mock", action="store_true", help="workers without a model, instant tokens")
    flags = parser.parse_args()
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
