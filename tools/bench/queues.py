"""Measures the shared-memory ring against multiprocessing.Queue, Pipe, pyzmq and asyncio streams.

All cases run in turn, round after round, in one program; the table shows medians over the rounds, and ratios of
this run beside the ratios to reach. Two processes run, each pinned to one CPU. tools.bench.idle measures an idle
server, whose actors wait at such rings.

    python -m tools.bench.queues [--seconds 0.4] [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tools.bench.queue_transports import (
    FORK,
    EventFd,
    Pipe,
    Queue,
    Ring,
    Send,
    SpinningRing,
    Streams,
    Take,
    Transport,
    Twin,
    Zmq,
    zmq,
)
from tools.harness.command_line import ToolParser
from tools.harness.figures import say

Numbers = dict[str, float]
SMALL = bytes(range(100))
CPUS = sorted(os.sched_getaffinity(0))


class Token(msgspec.Struct, array_like=True):
    """About 90 bytes: what a worker says about one token."""

    rid: int
    position: int
    token: int
    logprob: float
    text: str
    stamp: float
    usage: tuple[int, int, int]
    finish: str | None = None


class Blob(msgspec.Struct, array_like=True):
    rid: int
    data: bytes


TEXT = " a piece of text, some 30 chars"
TOKEN = Token(123456789, 4321, 31999, -0.693147, TEXT, 1.7e9, (1000, 2000, 300000), "length")
BLOB = Blob(7, bytes(2_097_100))


def pin(index: int) -> None:
    os.sched_setaffinity(0, {CPUS[index % len(CPUS)]})


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def serving(transport: Transport, take: Take, is_async: bool, cpu: int) -> Callable[[], tuple[float, float]]:
    """Forks a server. Returns a function that waits for (when it was done, its CPU seconds without its start)."""
    here, there = FORK.Pipe(duplex=False)
    begun = 0.0

    def counted(payloads: list[bytes], send: Send) -> bool:
        nonlocal begun
        begun = begun or cpu_seconds()
        return take(payloads, send)

    def run() -> None:
        pin(cpu)
        if is_async:
            asyncio.run(transport.serve_async(counted))
        else:
            transport.serve(counted)
        there.send((time.monotonic(), cpu_seconds() - begun))

    process = FORK.Process(target=run)
    process.start()
    there.close()

    def join() -> tuple[float, float]:
        end, used = here.recv()
        process.join()
        return end, used

    return join


def one_way(transport: Transport, seconds: float, message: Any = None, is_async: bool = False) -> Numbers:
    """Messages per second from the first send to the last receive, and CPU seconds per message of both sides.

    Without `message` 100 ready bytes are sent; with one it is encoded for every send and decoded after every receive.
    """
    encode = msgspec.msgpack.Encoder().encode if message is not None else None
    decode = msgspec.msgpack.Decoder(type(message)).decode if message is not None else None

    def take(payloads: list[bytes], send: Send) -> bool:
        for payload in payloads:
            if not payload:
                return True
            if decode is not None:
                decode(payload)
        return False

    join = serving(transport, take, is_async, 1)
    pin(0)
    send, _ = transport.client()
    time.sleep(0.05)
    used, start = cpu_seconds(), time.monotonic()
    sent, until, block = 0, start + seconds, range(1 if isinstance(message, Blob) else 64)
    while time.monotonic() < until:
        for _ in block:
            send(encode(message) if encode is not None else SMALL)
        sent += len(block)
    send(b"")
    end, cpu = join()
    return {"rate": sent / (end - start), "cpu": (cpu_seconds() - used + cpu) / sent}


def round_trip(transport: Transport, seconds: float, one_cpu: bool = False, is_async: bool = False) -> Numbers:
    """Median microseconds of a round trip of 100 bytes."""

    def answer(payloads: list[bytes], send: Send) -> bool:
        for payload in payloads:
            if not payload:
                return True
            send(payload)
        return False

    join = serving(transport, answer, is_async, 0 if one_cpu else 1)
    pin(0)
    send, receive = transport.client()
    times, until = list[float](), 0.0
    for number in range(1 << 30):
        if number == 50:  # the first rounds have cold caches and a starting process
            until, times = time.monotonic() + seconds, []
        start = time.perf_counter()
        send(SMALL)
        while not receive():
            pass
        times.append(time.perf_counter() - start)
        if number > 50 and time.monotonic() > until:
            break
    send(b"")
    join()
    return {"us": 1e6 * statistics.median(times)}


Case = Callable[[float], Numbers]


def case_of(make: Callable[[], Transport], measure: Callable[..., Numbers], **options: Any) -> Case:
    def case(seconds: float) -> Numbers:
        transport = make()
        try:
            return measure(transport, seconds, **options)
        finally:
            transport.close()

    return case


def cases() -> dict[str, Case]:
    small = {"ring": Ring, "pipe": Pipe, "queue": Queue, "zmq": Zmq}
    found = {f"bytes {name}": case_of(make, one_way) for name, make in small.items()}
    found |= {f"codec {name}": case_of(make, one_way, message=TOKEN) for name, make in small.items()}
    found["codec twin"] = case_of(Twin, one_way, message=TOKEN)
    large = {"ring": lambda: Ring(1 << 24, most=1), "pipe": Pipe, "zmq": Zmq}
    found |= {f"2 MB {name}": case_of(make, one_way, message=BLOB) for name, make in large.items()}
    two = {"ring": Ring, "spin": SpinningRing, "eventfd": EventFd, "pipe": Pipe, "zmq": Zmq}
    found |= {f"rtt {name}": case_of(make, round_trip) for name, make in two.items()}
    one = {"spin": SpinningRing, "eventfd": EventFd}
    found |= {f"one cpu {name}": case_of(make, round_trip, one_cpu=True) for name, make in one.items()}
    loops = {"ring": Ring, "streams": Streams, "zmq": Zmq}
    found |= {f"async {name}": case_of(make, one_way, is_async=True) for name, make in loops.items()}
    found |= {f"async rtt {name}": case_of(make, round_trip, is_async=True) for name, make in loops.items()}
    return {name: case for name, case in found.items() if zmq is not None or "zmq" not in name}


class Row(NamedTuple):
    """One line of the table: a ratio and the ratio to reach."""

    number: int
    what: str
    case: str
    other: str
    key: str
    relation: str
    target: float


ROWS = [
    Row(*row)
    for row in (
        (1, "transport alone 100 B, one by one: msg/s over pyzmq", "bytes ring", "bytes zmq", "rate", ">=", 6),
        (1, "  over Pipe", "bytes ring", "bytes pipe", "rate", ">=", 9),
        (1, "  over multiprocessing.Queue", "bytes ring", "bytes queue", "rate", ">=", 30),
        (2, "with codec 100 B: msg/s over pyzmq", "codec ring", "codec zmq", "rate", ">=", 2.2),
        (2, "  over Pipe", "codec ring", "codec pipe", "rate", ">=", 4.5),
        (2, "  over multiprocessing.Queue", "codec ring", "codec queue", "rate", ">=", 11),
        (3, "CPU per message, both sides, codec: to pyzmq", "codec ring", "codec zmq", "cpu", "<=", 0.5),
        (5, "sleeping round trip: to bare eventfd", "rtt ring", "rtt eventfd", "us", "<=", 1.35),
        (5, "  to pyzmq", "rtt ring", "rtt zmq", "us", "<=", 0.65),
        (6, "spin-then-park round trip: to bare eventfd", "rtt spin", "rtt eventfd", "us", "<=", 0.15),
        (6, "  both on one CPU", "one cpu spin", "one cpu eventfd", "us", "<=", 1.5),
        (7, "asyncio inbox: msg/s over zmq.asyncio", "async ring", "async zmq", "rate", ">=", 20),
        (7, "  over asyncio streams", "async ring", "async streams", "rate", ">=", 4),
        (7, "  round trip to zmq.asyncio", "async rtt ring", "async rtt zmq", "us", "<=", 0.6),
        (10, "2 MB inline: msg/s over Pipe", "2 MB ring", "2 MB pipe", "rate", ">=", 6),
        (10, "  over pyzmq", "2 MB ring", "2 MB zmq", "rate", ">=", 4),
        (11, "stdlib twin, codec 100 B: msg/s over Pipe", "codec twin", "codec pipe", "rate", ">=", 1.6),
    )
]


def shown(value: float, key: str) -> str:
    if key == "us":
        return f"{value:.1f} us"
    if key == "cpu":
        return f"{1e6 * value:.2f} us"
    return f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value / 1e3:.1f} k/s"


def table(medians: dict[str, Numbers]) -> bool:
    """Whether every ratio that could be measured reaches its target."""
    good = True
    print(f"{'row':>3}  {'':<52} {'ring':>12} {'other':>12} {'ratio':>7}  {'target':<10} verdict")
    for row in ROWS:
        ours, theirs, ratio, verdict = "n/a", "", "", "n/a"
        if row.case in medians and row.other in medians:
            values = [medians[name][row.key] for name in (row.case, row.other)]
            quotient = values[0] / values[1]
            passed = quotient >= row.target if row.relation == ">=" else quotient <= row.target
            ours, theirs = (shown(value, row.key) for value in values)
            ratio, verdict, good = f"{quotient:.2f}x", "pass" if passed else "FAIL", good and passed
        target = f"{row.relation} {row.target:g}x"
        print(f"{row.number:>3}  {row.what:<52} {ours:>12} {theirs:>12} {ratio:>7}  {target:<10} {verdict}")
    return good


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, seconds=0.02, rounds=1)
    parser.add_argument("--seconds", type=float, default=0.4, help="of one case in one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write every sample there")
    flags = parser.parse(argv)
    samples: dict[str, list[Numbers]] = {}
    for number in range(flags.rounds):
        say(f"round {number + 1} of {flags.rounds}")
        for name, case in cases().items():
            samples.setdefault(name, []).append(case(flags.seconds))
    medians = {
        name: {key: statistics.median(sample[key] for sample in found) for key in found[0]}
        for name, found in samples.items()
    }
    good = table(medians)
    if flags.json:
        flags.json.write_text(json.dumps({"medians": medians, "samples": samples}, indent=1) + "\n")
    return 0 if good or flags.smoke else 1


if __name__ == "__main__":
    sys.exit(main())
