"""Sends requests that are expensive by design and measures how long they delay others.

    python -m tools.faults.hostile_requests [--kinds plans,names,...] [--seconds 4]

Starts a server whose workers have no model (a context of 128k tokens, 256 rows, steps of 10 ms), and sends one kind of
hostile request after the other while a stream runs and /liveness is asked every 20 ms. Prints for each kind what was
answered, the longest time between two events of the stream, and the longest answer of /liveness. Client and server
share cores: the first line, with nothing sent, shows how quiet the machine is. Exit code 1 if a process died or the
server is not idle and healthy at the end.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.actors.mock_server import WORKER, write_mock_model
from tools.harness.command_line import ToolParser, words
from tools.harness.figures import Figures
from tools.harness.metrics import parse

MIB = 1 << 20
WORKERS = "tests.actors.mock_actor:PacedLargeMockWorkerActor"
CONTEXT = 1 << 17
START, LIMIT = 60.0, 120.0
"""Limits in seconds for the server's start and for one hostile request."""
LEGAL = {"ignore_eos": True, "max_new_tokens": 2}
Bodies = Callable[[], list[tuple[str, bytes]]]
"""(path, body) of requests that are sent together."""


def generate(inputs: str | list[int], **parameters: Any) -> tuple[str, bytes]:
    return "/generate", json.dumps({"inputs": inputs, "parameters": {**LEGAL, **parameters}}).encode()


def ids(count: int, first: int = 1) -> list[int]:
    return [1 + (first + i * i) % 255 for i in range(count)]


def padded(head: str, part: Callable[[int], str], tail: str, size: int = 24 * MIB) -> tuple[str, bytes]:
    """A body of about `size` bytes."""
    count = (size - len(head) - len(tail)) // len(part(1_000_000))
    return "/generate", (head + ",".join(map(part, range(1_000_000, 1_000_000 + count))) + tail).encode()


BEFORE = '{"inputs":"Tell me","parameters":{"max_new_tokens":2,'
KINDS: dict[str, Bodies] = {
    "nothing": list,
    "plans": lambda: [generate(ids(17_600), n=64), *(generate(ids(CONTEXT - 10, i), n=16) for i in range(3))],
    "prompt logprobs": lambda: [generate(ids(CONTEXT - 10), prompt_logprobs=20)],
    "names": lambda: [padded(BEFORE, lambda i: f'"n{i}":1', "}}")],
    "guide": lambda: [padded(BEFORE + '"guided_json":{', lambda i: f'"n{i}":1', "}}}")],
    "logit bias": lambda: [padded(BEFORE + '"logit_bias":{', lambda i: f'"{i}":1', "}}}")],
    "ids": lambda: [padded('{"inputs":[', lambda i: "7", "]}")],
    "text": lambda: [("/generate", json.dumps({"inputs": "9" * 24 * MIB}).encode())],
    "nesting": lambda: [("/generate", b'{"inputs":' + b"[" * 12 * MIB + b"]" * 12 * MIB + b"}")],
    "tokens": lambda: [("/tokens", json.dumps({"text": "9" * 2_000_000}).encode())] * 31,
    "answers": lambda: [generate("Tell me", n=64, logprobs=20, return_details=True, max_new_tokens=400)] * 2,
    "stops": lambda: [
        generate(f"Tell {k}", n=64, stop_sequences=[f"{k}{i:02}" * 256 for i in range(16)]) for k in range(4)
    ],
    "priority": lambda: [generate(ids(60_000, i), priority=2**31 - 1) for i in range(8)],
}


@dataclass
class Watch:
    """The delays that another client of the server sees, in seconds."""

    port: int
    liveness: float = 0.0
    gap: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        """Asks /liveness on one connection until the end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        with contextlib.closing(connection):
            while not self._ended.wait(0.02):
                begin = time.monotonic()
                connection.request("GET", "/liveness")
                assert connection.getresponse().read() is not None
                self.liveness = max(self.liveness, time.monotonic() - begin)

    def read(self) -> None:
        """Reads streams one after the other until the end."""
        while not self._ended.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
            with contextlib.closing(connection):
                _, body = generate("Tell me everything", max_new_tokens=CONTEXT - 100)
                connection.request("POST", "/generate_stream", body)
                self._follow(connection.getresponse())

    def _follow(self, response: http.client.HTTPResponse) -> None:
        last, line = 0.0, b""
        while not self._ended.is_set() and b'"finished":true' not in line:
            line = response.readline()
            assert line, "the stream broke"
            if line.startswith(b"data:"):
                now = time.monotonic()
                self.gap = max(self.gap, now - last if last else 0.0)
                last = now

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with ThreadPoolExecutor(2) as pool:
            watches = [pool.submit(self.look), pool.submit(self.read)]
            try:
                time.sleep(0.5)
                self.liveness = self.gap = 0.0
                yield
            finally:
                self._ended.set()
            for watch in watches:
                watch.result()


def ask(port: int, path: str, body: bytes) -> str:
    """The status of the answer; "cut" if there was none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    with contextlib.closing(connection):
        try:
            connection.request("POST", path, body)
            response = connection.getresponse()
            while response.read(MIB):
                pass
        except (OSError, http.client.HTTPException) as error:
            return f"cut ({type(error).__name__})"
        return str(response.status)


def number(port: int, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        return parse(connection.getresponse().read().decode())[name]


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """The server's port."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        folder = write_mock_model(Path(name) / "model")
        command = [sys.executable, "-m", "tests.actors.mock_server", "serve", "--model-dir", str(folder), "--port", "0"]
        command += ["--load-format", "dummy", "--log-json", "--max-total-token-num", "3000000", "--resume-window", "0"]
        log = Path(name) / "log"
        with log.open("wb") as file:
            server = subprocess.Popen(command, stderr=file, env={**os.environ, WORKER: WORKERS})
        try:
            yield _port(server, log)
        finally:
            server.terminate()
            server.wait(60)


def _port(server: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START
    while server.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.startswith("{") and "url" in (record := json.loads(line)):
                return int(record["url"].rsplit(":", 1)[1])
        time.sleep(0.1)
    raise SystemExit(f"the server did not start: {log.read_text()}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, kinds=["nothing", "names", "stops"], seconds=0.5)
    parser.add_argument("--kinds", type=words, default=list(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--seconds", type=float, default=4.0, help="to watch at least, for each kind")
    flags = parser.parse(argv)
    figures = Figures()
    with serving() as port, ThreadPoolExecutor(64) as pool:
        for kind in flags.kinds:
            requests, watch = KINDS[kind](), Watch(port)
            with watch.watching():
                end = time.monotonic() + flags.seconds
                statuses = Counter(pool.map(lambda request: ask(port, *request), requests))
                time.sleep(max(0.0, end - time.monotonic()))
            figures.add(f"{kind}: longest /liveness", watch.liveness * 1e3, "ms", statuses=dict(statuses))
            figures.add(f"{kind}: longest gap of a stream", watch.gap * 1e3, "ms")
        time.sleep(0.5)
        died, live = number(port, "actor_restarts_total"), number(port, "live_requests")
        figures.add("processes that died", died)
        figures.add("live afterwards", live)
    figures.table()
    return 1 if died or live else 0


if __name__ == "__main__":
    sys.exit(main())
