"""Measures the cost of a fleet's front: the same requests through it and at the engine's own port, in turns.

    python -m tools.bench.replica_front [--rounds 7] [--requests 300] [--streams 64] [--tokens 200] [--step-ms 20]
                                        [--profile FILE] [--serve]

Starts an engine whose workers have no model, and a front (replicas/port.py, as in `lightllm-mp serve --replicas`) in
its own process. Each round sends requests of one token, one after another on one connection, then `streams` streams at
once, to each of the two. Prints the latency to the first event, the time that the front adds, and tokens a second of
each with their ratio: for a worker that takes `step-ms` for a step, as a model does, and for one that answers at once,
where the cores limit both. `--profile`: cProfile's statistics of the front. `--serve`: the front of
`lightllm_mp.ray:build_app`, behind the proxy of Ray Serve, without the figures of CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightllm_mp.actors.http.security.keys import RELAY_ENVIRONMENT, ApiKeys
from lightllm_mp.actors.http.sockets.listener import serve
from lightllm_mp.config import HttpConfig
from lightllm_mp.replicas.front import FleetFront
from lightllm_mp.replicas.front_door import FrontDoor
from lightllm_mp.replicas.http_fleet import HttpFleet, ReplicaFacts
from lightllm_mp.replicas.port import create_fleet_app
from lightllm_mp.replicas.routing import ReplicaRouter
from tests.actors.mock_server import STEP, WORKER, write_mock_model
from tools.bench.api_formats import Stream
from tools.faults.overload import wait_for_url
from tools.harness.command_line import ToolParser
from tools.harness.figures import Figures
from tools.harness.procfs import TICKS, cpu_seconds

ENGINE, FRONT = "engine", "front"
SERVED = "replica_front"
"""The name of the Ray Serve application."""


# --- the front, in its own process ------------------------------------------------------------------------------------


async def run_front(engine: str) -> None:
    ended, router = asyncio.Event(), ReplicaRouter()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    fleet = HttpFleet(router, os.environ[RELAY_ENVIRONMENT])
    await fleet.update({"one": ReplicaFacts(engine, 200_000)})
    config = HttpConfig(port=0, disable_access_log=True, max_connections_per_address=0)
    app = create_fleet_app(FrontDoor(FleetFront(fleet, router), ApiKeys()), config, ApiKeys())
    port = await serve(app, socket.create_server(("127.0.0.1", 0)), config)
    print("http://{}:{}".format(*port.address), flush=True)
    await ended.wait()
    await port.close()
    await fleet.close()


def front_process(engine: str, profile: Path | None) -> None:
    profiler = cProfile.Profile()
    if profile is not None:
        profiler.enable()
    asyncio.run(run_front(engine))
    if profile is not None:
        profiler.disable()
        profiler.dump_stats(profile)


def serve_process(engine: str) -> None:
    import ray
    from ray import serve as ray_serve

    from lightllm_mp.ray.app import ServedFront, _Front
    from lightllm_mp.ray.directory import PERIOD, DirectoryClient

    key, directory = os.environ[RELAY_ENVIRONMENT], DirectoryClient(SERVED)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def front() -> ServedFront:
        return ServedFront(SERVED, key, ApiKeys(), HttpConfig().max_body_bytes)

    async def report() -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        while True:
            await directory.report("one", ReplicaFacts(engine, 200_000))
            await asyncio.sleep(PERIOD)

    ray.init(num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    try:
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
        deployment: Any = ray_serve.deployment
        options = {"max_ongoing_requests": 100_000, "ray_actor_options": {"num_cpus": 0.1}}
        ray_serve.run(deployment(ray_serve.ingress(front)(_Front)).options(**options).bind(None), name=SERVED)
        print(f"http://127.0.0.1:{port}", flush=True)
        asyncio.run(report())
    except KeyboardInterrupt:
        ray_serve.shutdown()
    finally:
        ray.shutdown()


# --- measuring --------------------------------------------------------------------------------------------------------


def request(tokens: int, *, close: bool) -> bytes:
    body = json.dumps({"inputs": "hello", "parameters": {"max_new_tokens": tokens, "ignore_eos": True}}).encode()
    head = "POST /generate_stream HTTP/1.1\r\nHost: localhost\r\n" + ("Connection: close\r\n" if close else "")
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def latencies(url: str, requests: int) -> list[float]:
    """Seconds from each request to its event."""
    address, found, asked = urlsplit(url), list[float](), request(1, close=False)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    for _ in range(requests):
        begin = time.perf_counter()
        writer.write(asked)
        await reader.readuntil(b"data:")
        found.append(time.perf_counter() - begin)
        await reader.readuntil(b"\r\n0\r\n\r\n")
    writer.close()
    return found


async def rate(url: str, streams: int, tokens: int) -> float:
    """Tokens a second of all streams. Raises SystemExit if a stream fails or is short."""
    loop, address, asked = asyncio.get_running_loop(), urlsplit(url), request(tokens, close=True)
    begin = time.perf_counter()
    connecting = (
        loop.create_connection(lambda: Stream(asked), str(address.hostname), address.port or 80) for _ in range(streams)
    )
    found = await asyncio.gather(*connecting)
    await asyncio.gather(*(stream.done for _, stream in found))
    if bad := [stream for _, stream in found if stream.status != b"200" or stream.events < tokens]:
        raise SystemExit(f"{len(bad)} streams failed, one with {bad[0].status!r}, {bad[0].events} events")
    return streams * tokens / (time.perf_counter() - begin)


async def measure(flags: argparse.Namespace, urls: dict[str, str], front: int, figures: Figures, kind: str) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in urls}
    added, rates = list[float](), dict[str, list[float]]({name: [] for name in urls})
    cpu, of_requests = list[float](), list[float]()
    for number in range(flags.rounds + 1):
        names = list(urls) if number % 2 else list(reversed(urls))
        before, of_round = cpu_seconds(front), {name: await latencies(urls[name], flags.requests) for name in names}
        of_requests.append(1e6 * (cpu_seconds(front) - before) / flags.requests)
        for name in names:
            before = cpu_seconds(front)
            found = await rate(urls[name], flags.streams, flags.tokens)
            if number:  # the first round warms up
                rates[name].append(found)
                seconds[name] += of_round[name]
                if name == FRONT:
                    spent = max(cpu_seconds(front) - before, 1 / TICKS)
                    cpu.append(1e6 * spent / (flags.streams * flags.tokens))
        if number:
            added.append(statistics.median(of_round[FRONT]) - statistics.median(of_round[ENGINE]))
    for name, values in seconds.items():
        values.sort()
        figures.add(f"{kind}, {name}: first event, 10 %", 1e3 * values[int(0.1 * len(values))], "ms")
        figures.add(f"{kind}, {name}: first event, median", 1e3 * statistics.median(values), "ms")
        figures.add(f"{kind}, {name}: first event, 99 %", 1e3 * values[int(0.99 * len(values))], "ms")
    figures.add(f"{kind}: added at the median, median of rounds", 1e3 * statistics.median(added), "ms")
    for name, found_rates in rates.items():
        figures.add(f"{kind}, {name}: tokens", statistics.median(found_rates), "1/s")
    ratios = [front / engine for front, engine in zip(rates[FRONT], rates[ENGINE], strict=True)]
    figures.add(f"{kind}: tokens through the front", statistics.median(ratios), "x")
    if flags.serve:
        return
    figures.add(f"{kind}: CPU of the front per request of one token", statistics.median(of_requests), "us")
    figures.add(f"{kind}: CPU of the front per token of a stream", statistics.median(cpu), "us")


def compare(flags: argparse.Namespace, folder: Path, step: float, figures: Figures, profile: Path | None) -> None:
    """One engine and its front."""
    model, log = write_mock_model(folder / "model"), folder / "log"
    environment = {**os.environ, RELAY_ENVIRONMENT: secrets.token_hex(16), STEP: str(step)}
    if step:
        environment[WORKER] = "tests.actors.mock_actor:PacedWorkerActor"
    command = [sys.executable, "-m", "tests.actors.mock_server", "serve", "--model-dir", str(model), "--port", "0"]
    command += ["--load-format", "dummy", "--log-json", "--disable-access-log", "--max-connections-per-address", "0"]
    command += ["--max-live-requests", str(2 * flags.streams), "--max-total-token-num", "200000"]
    with log.open("wb") as file:
        engine = subprocess.Popen(command, stderr=file, env=environment)
    front = None
    try:
        url = wait_for_url(engine, log)
        command = [sys.executable, "-m", "tools.bench.replica_front", "--front-of", url]
        command += ["--profile", str(profile)] if profile else []
        command += ["--serve"] if flags.serve else []
        front = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert front.stdout is not None
        urls = {ENGINE: url, FRONT: front.stdout.readline().strip()}
        kind = f"{1e3 * step:g} ms a step" if step else "at once"
        asyncio.run(measure(flags, urls, front.pid, figures, kind))
    finally:
        for process in (front, engine):
            if process is not None:
                process.terminate()
                process.wait(60)


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, rounds=1, requests=5, streams=4, tokens=8, step_ms=1.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--front-of", help=argparse.SUPPRESS)
    flags = parser.parse(argv)
    if flags.front_of:
        serve_process(flags.front_of) if flags.serve else front_process(flags.front_of, flags.profile)
        return 0
    figures = Figures()
    for step, profile in ((flags.step_ms / 1e3, None), (0.0, flags.profile))[flags.smoke or flags.step_ms == 0 :]:
        with tempfile.TemporaryDirectory(prefix="replica-front-") as name:
            compare(flags, Path(name), step, figures, profile)
    figures.table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
