"""Measures the shared-memory ring against multiprocessing.Queue, Pipe, pyzmq and asyncio streams.

All cases run in turn, round after round, in the same program on the same machine; the table shows medians over the
rounds, and ratios inside this one run beside the ratio to reach. Two processes, pinned to one CPU each. What an idle
server takes, whose actors all wait at such rings, tells tools.bench.idle.

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

from tools.bench.queue_transports import EventFd, Pipe, Queue, Ring, SpinningRing, Streams, Transport, Twin, Zmq, zmq
from tools.harness.command_line import ToolParser
from tools.harness.figures import say

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


TOKEN = Token(
    123456789, 4321, 31999, -0.693147, " a piece of text, some 30 chars", 1.7e9, (1000, 2000, 300000), "length"
)
BLOB = Blob(7, bytes(2_097_100))


def pin(index: int) -> None:
    os.sched_setaffinity(0, {CPUS[index % len(CPUS)]})


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def in_child(work: Callable[[], dict[str, float]], cpu: int) -> Callable[[], dict[str, float]]:
    """Runs `work` in a forked process; what is returned waits for its result."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            pin(cpu)
            os.write(write, json.dumps(work()).encode())
        except BaseException as error:
            os.write(write, json.dumps({"error": repr(error)}).encode())
        finally:
            os._exit(0)
    os.close(write)

    def join() -> dict[str, float]:
        with os.fdopen(read, "rb") as file:
            result = json.loads(file.read())
        os.waitpid(pid, 0)
        if "error" in result:
            raise RuntimeError(f"the other process failed: {result['error']}")
        return result

    return join


def one_way(transport: Transport, seconds: float, message: Any = None, is_async: bool = False) -> dict[str, float]:
    """Messages per second from the first send to the last receive, and CPU seconds per message of both sides.

    Without `message` 100 ready bytes are sent; with one it is encoded for every send and decoded after every receive.
    """
    encode = msgspec.msgpack.Encoder().encode if message is not None else None
    decode = msgspec.msgpack.Decoder(type(message)).decode if message is not None else None
    cpu = 0.0  # of the receiver, without its start

    def take(payloads: list[bytes], _: Any = None) -> bool:
        nonlocal cpu
        cpu = cpu or cpu_seconds()
        for payload in payloads:
            if not payload:
                return True
            if decode is not None:
                decode(payload)
        return False

    def receive_all() -> dict[str, float]:
        receive = transport.receiver()
        while not take(receive()):
            pass
        return {"end": time.monotonic(), "cpu": cpu_seconds() - cpu}

    def receive_async() -> dict[str, float]:
        async def main() -> None:
            await transport.serve_async(asyncio.get_running_loop(), take)

        asyncio.run(main())
        return {"end": time.monotonic(), "cpu": cpu_seconds() - cpu}

    join = in_child(receive_async if is_async else receive_all, 1)
    pin(0)
    send = transport.sender()
    time.sleep(0.05)
    used, start = cpu_seconds(), time.monotonic()
    sent, until, block = 0, start + seconds, range(1 if isinstance(message, Blob) else 64)
    while time.monotonic() < until:
        for _ in block:
            send(encode(message) if encode is not None else SMALL)
        sent += len(block)
    send(b"")
    received = join()
    both = cpu_seconds() - used + received["cpu"]
    return {"rate": sent / (received["end"] - start), "cpu": both / sent}


def round_trip(transport: Transport, seconds: float, one_cpu: bool = False, is_async: bool = False) -> dict[str, float]:
    """Median microseconds of 100 bytes there and back."""

    def answer() -> dict[str, float]:
        receive, send = transport.server()
        while True:
            for payload in receive():
                if not payload:
                    return {}
                send(payload)

    def answer_async() -> dict[str, float]:
        def take(payloads: list[bytes], send: Callable[[bytes], Any]) -> bool:
            for payload in payloads:
                if not payload:
                    return True
                send(payload)
            return False

        async def main() -> None:
            await transport.serve_async(asyncio.get_running_loop(), take)

        asyncio.run(main())
        return {}

    join = in_child(answer_async if is_async else answer, 0 if one_cpu else 1)
    pin(0)
    send, receive = transport.client()
    times, until = list[float](), 0.0
    for number in range(1 << 30):
        if number == 50:  # the first rounds find cold caches and a process that starts
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


Case = Callable[[float], dict[str, float]]


def with_transport(make: Callable[[], Transport], measure: Callable[..., dict[str, float]], **options: Any) -> Case:
    def case(seconds: float) -> dict[str, float]:
        transport = make()
        try:
            return measure(transport, seconds, **options)
        finally:
            transport.close()

    return case


def cases() -> dict[str, Case]:
    small = {"ring": Ring, "pipe": Pipe, "queue": Queue, "zmq": Zmq}
    found = {f"bytes {name}": with_transport(make, one_way) for name, make in small.items()}
    found |= {f"codec {name}": with_transport(make, one_way, message=TOKEN) for name, make in small.items()}
    found["codec twin"] = with_transport(Twin, one_way, message=TOKEN)
    large = {"ring": lambda: Ring(1 << 24, most=1), "pipe": Pipe, "zmq": Zmq}
    found |= {f"2 MB {name}": with_transport(make, one_way, message=BLOB) for name, make in large.items()}
    two = {"ring": Ring, "spin": SpinningRing, "eventfd": EventFd, "pipe": Pipe, "zmq": Zmq}
    found |= {f"rtt {name}": with_transport(make, round_trip) for name, make in two.items()}
    one = {"spin": SpinningRing, "eventfd": EventFd}
    found |= {f"one cpu {name}": with_transport(make, round_trip, one_cpu=True) for name, make in one.items()}
    loops = {"ring": Ring, "streams": Streams, "zmq": Zmq}
    found |= {f"async {name}": with_transport(make, one_way, is_async=True) for name, make in loops.items()}
    found |= {f"async rtt {name}": with_transport(make, round_trip, is_async=True) for name, make in loops.items()}
    return {name: case for name, case in found.items() if zmq is not None or "zmq" not in name}


class Row(NamedTuple):
    """One line of the table: a ratio, and the ratio to reach."""

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


def table(medians: dict[str, dict[str, float]]) -> bool:
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
    samples: dict[str, list[dict[str, float]]] = {}
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
