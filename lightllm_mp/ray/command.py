"""`lightllm-mp serve --replicas N`: a fleet on this machine with its own Ray, or in a cluster (--ray-address).

The front runs in this process, on the port that a single engine would have. The replicas are a deployment of Ray Serve
without HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray
from msgspec.structs import replace
from ray import serve

from lightllm_mp.actors.http.security.keys import ApiKeys, relay_keys
from lightllm_mp.actors.http.security.tls import server_context
from lightllm_mp.actors.http.sockets.bind import BACKLOG, url_of
from lightllm_mp.actors.http.sockets.listener import serve as listen_on
from lightllm_mp.actors.supervision.state_machine import EXIT_START_FAILED
from lightllm_mp.config import Config
from lightllm_mp.ray.app import build_replicas, has_gpus
from lightllm_mp.ray.directory import DirectoryClient
from lightllm_mp.replicas.front import FleetFront
from lightllm_mp.replicas.front_door import FrontDoor
from lightllm_mp.replicas.http_fleet import HttpFleet
from lightllm_mp.replicas.port import create_fleet_app
from lightllm_mp.replicas.routing import ReplicaRouter

APPLICATION = "lightllm_mp"
OBJECT_STORE = 80 << 20
"""Bytes. Small, because requests do not pass through Ray's object store."""
TURN = 0.1
"""Seconds between two checks for the first replica."""

log = logging.getLogger("lightllm_mp.fleet")


def serve_fleet(
    config: Config, listen: socket.socket, keys: ApiKeys, *, parent_fd: int = -1, status_fd: int = -1
) -> int:
    """Serve until a signal stops the fleet. Returns the exit code. `parent_fd`, `status_fd`: as in cli/serve.py."""
    embedded = config.fleet.ray_address is None
    if embedded:
        # Logical CPUs that only Ray counts; the engines share the real cores.
        cpus = max(_most(config) * config.engine.nnodes + 1, os.cpu_count() or 1)
        ray.init(
            num_cpus=cpus, object_store_memory=OBJECT_STORE, include_dashboard=False, logging_level=logging.WARNING
        )
    else:
        ray.init(config.fleet.ray_address, log_to_driver=False, logging_level=logging.WARNING)
    try:
        return asyncio.run(_FleetServer(config, listen, keys, parent_fd, status_fd).run())
    finally:
        ray.shutdown()


class _FleetServer:
    def __init__(self, config: Config, listen: socket.socket, keys: ApiKeys, parent_fd: int, status_fd: int) -> None:
        self._config, self._listen, self._keys = config, listen, keys
        self._parent_fd, self._status_fd = parent_fd, status_fd
        self._embedded = config.fleet.ray_address is None
        self._relay_key = next(iter(relay_keys(os.environ)), secrets.token_hex(32))
        self._directory = DirectoryClient(APPLICATION)
        router = ReplicaRouter()
        self._fleet = HttpFleet(router, self._relay_key)
        self._front = FleetFront(self._fleet, router)
        self._door = FrontDoor(self._front, keys)
        self._ended, self._at_once = asyncio.Event(), asyncio.Event()

    async def run(self) -> int:
        self._heed_signals()
        http = self._config.http
        url = url_of(self._listen, secure=http.ssl_certfile is not None)
        watching = asyncio.create_task(self._directory.follow(self._fleet))
        deployed = _in_thread(self._deploy)
        print(f"lightllm-mp starts {self._config.fleet.replicas} replicas", file=sys.stderr, flush=True)
        if http.reuse_port:  # the old server keeps all connections until a replica is ready
            await self._ready(deployed)
            self._listen.listen(BACKLOG)
        app = create_fleet_app(self._door, http, self._keys)
        port = await listen_on(app, self._listen, http, tls=server_context(http))
        try:
            if await self._ready(deployed):
                print(f"lightllm-mp is serving on {url}", file=sys.stderr, flush=True)
                await self._report(url)
                await self._ended.wait()
                await self._drain(port)
        except (RuntimeError, ray.exceptions.RayError) as error:  # what Serve raises when a deployment fails
            log.critical("%s", error)
            return EXIT_START_FAILED
        finally:
            await port.close()
            watching.cancel()
            await self._fleet.close()
        if not (self._embedded and self._at_once.is_set()):
            await _first_of(asyncio.wrap_future(_in_thread(self._delete)), self._at_once.wait())
        return 0

    def _heed_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if self._ended.is_set():
                self._at_once.set()
            self._ended.set()

        def end() -> None:
            loop.remove_reader(self._parent_fd)
            self._at_once.set()
            self._ended.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        if self._parent_fd >= 0:
            loop.add_reader(self._parent_fd, end)

    async def _ready(self, deployed: Future[None]) -> bool:
        """Wait for a replica that takes requests. False if the server must end first. Raises the error of the
        deployment."""
        while not (self._front.accepting or self._ended.is_set()):
            if deployed.done():
                deployed.result()
            await asyncio.sleep(TURN)
        return not self._ended.is_set()

    async def _report(self, url: str) -> None:
        if self._status_fd < 0:
            return
        found = await self._front.ask_all("/get_server_info", b"", "user")
        facts: dict[str, Any] = next(
            (json.loads(body)["facts"] for status, body in found.values() if status == 200), {}
        )
        os.write(self._status_fd, json.dumps({"url": url, **facts}).encode() + b"\n")

    async def _drain(self, port: Any) -> None:
        supervision = self._config.supervisor
        self._door.leaving = True
        await _first_of(asyncio.sleep(supervision.drain_delay), self._at_once.wait())
        if self._config.http.reuse_port:
            await port.leave()
        self._door.draining = True
        await _first_of(self._door.quiet(), self._at_once.wait(), asyncio.sleep(supervision.drain_timeout))

    # --- in threads, because Serve blocks ---

    def _deploy(self) -> None:
        serve.start(proxy_location="Disabled")
        engine = _shared(self._config) if self._embedded else self._config
        app = build_replicas(engine, self._relay_key, APPLICATION, tenants=len(self._keys))
        serve.run(app, name=APPLICATION, blocking=False, route_prefix=None)

    def _delete(self) -> None:
        serve.delete(APPLICATION)
        self._directory.end()
        if self._embedded:
            serve.shutdown()


def _in_thread(call: Callable[[], None]) -> Future[None]:
    """Run a call in a daemon thread, which does not keep this process from ending. Returns its future."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            call()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


async def _first_of(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _most(config: Config) -> int:
    """The most replicas at once."""
    return max(config.fleet.replicas, config.fleet.max_replicas or 0)


def _shared(config: Config) -> Config:
    """The configuration of each engine: on one machine without GPUs they share its memory and cores."""
    if config.model.device == "cuda" or has_gpus():
        return config
    count, engine = _most(config), config.engine
    threads = engine.threads or max(1, len(os.sched_getaffinity(0)) // (count * engine.tp))
    return replace(config, engine=replace(engine, threads=threads, mem_fraction=engine.mem_fraction / count))
