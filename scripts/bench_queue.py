"""Measures the shared-memory ring against multiprocessing.Queue, Pipe, pyzmq and asyncio streams.

All cases run in turn, round after round, in the same program on the same machine; the table shows medians over the
rounds, and ratios inside this one run beside the ratio to reach. Two processes, pinned to one CPU each.

    python scripts/bench_queue.py [--quick] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
from queue_transports import EventFd, Pipe, Queue, Ring, SpinningRing, Streams, Twin, Zmq, zmq

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


def one_way(transport: Any, seconds: float, message: Any = None, is_async: bool = False) -> dict[str, float]:
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


def round_trip(transport: Any, seconds: float, one_cpu: bool = False, is_async: bool = False) -> dict[str, float]:
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
    times, until = [], 0.0
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


def idle(transport: Any, seconds: float, is_async: bool = False) -> dict[str, float]:
    """An actor that waits: percent of a core and context switches per second."""

    def watch() -> dict[str, float]:
        inbox = transport.inbox(1)

        async def sleep() -> None:
            inbox.attach(asyncio.get_running_loop(), lambda records: None)
            await asyncio.sleep(0.2)
            await measured(asyncio.sleep(seconds))

        async def measured(wait: Any) -> None:
            before = resource.getrusage(resource.RUSAGE_SELF)
            await wait
            result.append((before, resource.getrusage(resource.RUSAGE_SELF)))

        result: list[Any] = []
        if is_async:
            asyncio.run(sleep())
        else:
            inbox.wait(0.2)
            before = resource.getrusage(resource.RUSAGE_SELF)
            inbox.wait(seconds)
            result.append((before, resource.getrusage(resource.RUSAGE_SELF)))
        before, after = result[0]
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        switches = after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw
        return {"percent": 100 * used / seconds, "switches": switches / seconds}

    return in_child(watch, 1)()


Case = Callable[[float], dict[str, float]]


def with_transport(make: Callable[[], Any], measure: Callable[..., dict[str, float]], **options: Any) -> Case:
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


# (row of the requirements, what, measured case, compared case, key, ">=" or "<=", ratio to reach)
ROWS = [
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
]
IDLE_LIMITS = {"percent": 0.2, "switches": 5.0}


def shown(value: float, key: str) -> str:
    if key == "us":
        return f"{value:.1f} us"
    if key == "cpu":
        return f"{1e6 * value:.2f} us"
    return f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value / 1e3:.1f} k/s"


def evaluate(medians: dict[str, dict[str, float]], idles: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, what, case, other, key, relation, target in ROWS:
        row: dict[str, Any] = {"row": number, "what": what, "target": f"{relation} {target:g}x"}
        if case in medians and other in medians:
            ours, theirs = medians[case][key], medians[other][key]
            ratio = ours / theirs
            passed = ratio >= target if relation == ">=" else ratio <= target
            row |= {"ours": shown(ours, key), "theirs": shown(theirs, key), "ratio": ratio, "passed": passed}
        rows.append(row)
    for name, found in idles.items():
        passed = all(found[key] <= limit for key, limit in IDLE_LIMITS.items())
        ours = f"{found['percent']:.2f} %, {found['switches']:.1f}/s"
        rows.append(
            {"row": 8, "what": f"idle {name}: CPU, switches", "target": "<= 0.2 %, 5/s", "ours": ours, "passed": passed}
        )
    return sorted(rows, key=lambda row: row["row"])


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'row':>3}  {'':<52} {'ring':>12} {'other':>12} {'ratio':>7}  {'target':<14} verdict")
    for row in rows:
        ratio = f"{row['ratio']:.2f}x" if "ratio" in row else ""
        verdict = {True: "pass", False: "FAIL", None: "n/a"}[row.get("passed")]
        ours, theirs = row.get("ours", "n/a"), row.get("theirs", "")
        print(f"{row['row']:>3}  {row['what']:<52} {ours:>12} {theirs:>12} {ratio:>7}  {row['target']:<14} {verdict}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three short rounds: shows that it works, not how fast")
    parser.add_argument("--rounds", type=int, default=0, help="rounds over all cases (default 5, with --quick 3)")
    parser.add_argument("--json", metavar="FILE", help="also write every sample there")
    options = parser.parse_args()
    seconds = 0.1 if options.quick else 0.4
    rounds = options.rounds or (3 if options.quick else 5)
    samples: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        for name, case in cases().items():
            if sys.stderr.isatty():
                print(f"\rround {number + 1}/{rounds}: {name:<20}", end="", file=sys.stderr, flush=True)
            samples.setdefault(name, []).append(case(seconds))
    medians = {
        name: {key: statistics.median(sample[key] for sample in found) for key in found[0]}
        for name, found in samples.items()
    }
    length = 2.0 if options.quick else 10.0
    idles = {name: with_transport(Ring, idle, is_async=name == "asyncio")(length) for name in ("blocking", "asyncio")}
    rows = evaluate(medians, idles)
    print_table(rows)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"rows": rows, "medians": medians, "samples": samples, "idle": idles}, file, indent=1)
    return 0 if all(row.get("passed") is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
