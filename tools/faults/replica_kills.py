"""Kills replicas of a fleet, one after another, under streamed requests, and reports lost and different answers.

    python -m tools.faults.replica_kills [--replicas 4] [--requests 1000] [--clients 16] [--every 5] [--tokens 300]

Starts a Ray cluster on this machine with a fleet whose engines have no model; their workers take 10 ms for a step.
First the undisturbed fleet answers every kind of request. Then --clients clients send requests, greedy and sampled in
turns, until --requests are answered. Meanwhile SIGKILL ends a ready replica with its engine every --every seconds. A
client repeats a request that is refused because no replica is ready, after the time of Retry-After. Each answer must be
the undisturbed one, token by token. At the end no process may be left.

Prints one line of totals; the longest pause is between two tokens of a stream. Exit code 1 if an answer was lost or
different, a process was left, or no replica was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import aiohttp

from tools.harness.command_line import ToolParser, skip

if TYPE_CHECKING:
    from tools.faults.local_cluster import LocalCluster

KINDS = 20
"""The number of different requests."""
SHOWN = 100
"""Requests between two lines of progress."""
DEADLINE = 300.0
"""The most seconds of one request."""


@dataclass
class Streamed:
    """An answer. `ids`: its token ids; `pause`: the most seconds between two tokens; `failure`: why it is lost."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    pause: float = 0.0
    failure: str = ""
    refused: int = 0
    """How often no replica was ready for the request."""


@dataclass
class Result:
    """The result of a run. `alive`: the number of ready replicas after each kill."""

    outcomes: Counter[str] = field(default_factory=Counter)
    pauses: list[float] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    refused: int = 0
    left: int = 0

    @property
    def good(self) -> bool:
        return set(self.outcomes) == {"identical"} and bool(self.alive) and not self.left

    def __str__(self) -> str:
        pauses = sorted(self.pauses)
        return (
            f"{self.outcomes.total()} requests, {len(self.alive)} replicas killed ({min(self.alive, default=0)} to"
            f" {max(self.alive, default=0)} others were ready): {self.outcomes['identical']} identical,"
            f" {self.outcomes['different']} different, {self.outcomes['lost']} lost; refused {self.refused} times"
            f" before they began; {self.seconds:.0f} s,"
            f" {self.tokens / self.seconds:.0f} tokens/s; longest pause of a stream: median"
            f" {pauses[len(pauses) // 2]:.2f} s, 99 % {pauses[len(pauses) * 99 // 100]:.2f} s, most {pauses[-1]:.2f} s;"
            f" {self.left} processes left"
        )


def body(kind: int, tokens: int) -> dict[str, Any]:
    sampled = {"do_sample": True, "temperature": 0.8, "seed": kind} if kind % 2 else {"do_sample": False}
    parameters = {"max_new_tokens": tokens - 5 * kind % 50, "ignore_eos": True, **sampled}
    return {"inputs": f"Question {kind}: " + "and then? " * kind, "parameters": parameters}


async def ask(session: aiohttp.ClientSession, asked: dict[str, Any]) -> Streamed:
    """Send one request until its end. A lost answer raises nothing."""
    found = Streamed()
    try:
        async with asyncio.timeout(DEADLINE):
            while (wait := await _read(session, asked, found)) is not None:
                found.refused += 1
                await asyncio.sleep(wait)
    except (aiohttp.ClientError, TimeoutError, ConnectionError, ValueError) as error:
        found.failure = repr(error)
    return found


async def _read(session: aiohttp.ClientSession, asked: dict[str, Any], found: Streamed) -> float | None:
    """Read one answer. Returns the seconds after which to repeat a refused request; None if the request has ended."""
    async with session.post("/generate_stream", json=asked) as reply:
        if reply.status == 503 and "Retry-After" in reply.headers:
            return float(reply.headers["Retry-After"])
        if reply.status != 200:
            raise ValueError(f"{reply.status} {(await reply.text())[:200]}")
        finished, last = False, 0.0
        async for line in reply.content:
            if not line.startswith(b"data:"):
                continue
            event = json.loads(line[5:])
            if "token" not in event:
                raise ValueError(str(event)[:200])
            found.ids.append(event["token"]["id"])
            found.text += event["token"]["text"]
            now = time.monotonic()
            found.pause, last = max(found.pause, now - last if last else 0.0), now
            finished = event["finished"]
        if not finished:
            raise ValueError("its stream ends early")
    return None


async def disturb(cluster: LocalCluster, every: float, chance: random.Random, result: Result) -> None:
    while True:
        await asyncio.sleep(every)
        if ready := sorted(cluster.ready()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(ready), signal.SIGKILL)
                result.alive.append(len(ready) - 1)


async def experiment(cluster: LocalCluster, requests: int, clients: int, every: float, tokens: int) -> Result:
    """Send all requests under kills. Prints a difference at once."""
    result, left = Result(), iter(range(requests))
    timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(cluster.url, timeout=timeout, connector=connector) as session:
        whole = await asyncio.gather(*(ask(session, body(kind, tokens)) for kind in range(KINDS)))
        if failed := [answer.failure for answer in whole if answer.failure]:
            raise RuntimeError(f"the undisturbed fleet fails: {failed[0]}")

        async def client() -> None:
            for number in left:
                kind = number % KINDS
                answer = await ask(session, body(kind, tokens))
                same = (answer.ids, answer.text) == (whole[kind].ids, whole[kind].text)
                end = "lost" if answer.failure else "identical" if same else "different"
                result.outcomes[end] += 1
                result.pauses.append(answer.pause)
                result.refused += answer.refused
                result.tokens += len(answer.ids)
                if end != "identical":
                    print(f"{end.upper()} {number}: {answer.failure or answer.text}", flush=True)
                if not result.outcomes.total() % SHOWN:
                    print(f"{result.outcomes.total()} answered, {len(result.alive)} replicas killed", flush=True)

        begin = time.monotonic()
        killing = asyncio.create_task(disturb(cluster, every, random.Random(1), result))
        await asyncio.gather(*(client() for _ in range(clients)))
        killing.cancel()
        result.seconds = time.monotonic() - begin
    return result


def run(replicas: int, requests: int, clients: int, every: float, tokens: int) -> Result:
    from tools.faults.local_cluster import belonging, local_cluster

    rooms = (replicas - replicas // 2, replicas // 2) if replicas > 2 else (replicas,)
    with local_cluster(*rooms) as cluster:
        cluster.deploy(replicas)
        result = asyncio.run(experiment(cluster, requests, clients, every, tokens))
        cluster.end_application()
        folder = cluster.folder
    result.left = len(belonging(folder))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, replicas=2, requests=8, clients=4, every=1.5, tokens=100)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16, help="requests at once")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills")
    parser.add_argument("--tokens", type=int, default=300, help="of an answer, at most")
    flags = parser.parse(argv)
    if find_spec("ray") is None:
        skip("needs Ray (pip install 'lightllm-mp[ray]')")
    result = run(flags.replicas, flags.requests, flags.clients, flags.every, flags.tokens)
    print(result, flush=True)
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
