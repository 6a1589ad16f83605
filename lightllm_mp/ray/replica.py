"""A replica: the engine of one placement, started and ended with it. Requests reach it over its own port."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import urllib.request
from typing import Any

import msgspec
import ray
from msgspec.structs import replace
from ray import serve

from lightllm_mp.actors.http.security.keys import ENVIRONMENT, RELAY_ENVIRONMENT
from lightllm_mp.config import Config, FleetConfig
from lightllm_mp.ray.directory import PERIOD, DirectoryClient
from lightllm_mp.replicas.http_fleet import ReplicaFacts
from lightllm_mp.server import Server

START_SECONDS = 1800.0
REPAIR_SECONDS = 300.0
"""An engine that is in trouble for longer than any repair takes is replaced with its replica."""


class LightLLMReplica:
    """`config`: of the engine, as MessagePack. `key`: the relay key of the fleet. `host`: where its engine listens
    (default: the node's address)."""

    def __init__(self, config: bytes, key: str, application: str, host: str | None = None) -> None:
        given = msgspec.msgpack.decode(config, type=Config)
        address = host or ray.util.get_node_ip_address()
        http = replace(given.http, host=address, port=0, max_connections_per_address=0, no_ui=True)
        os.environ[RELAY_ENVIRONMENT] = key
        os.environ[ENVIRONMENT] = secrets.token_hex(32)  # clients come through the front
        self._name = serve.get_replica_context().replica_id.unique_id
        self._server = Server(replace(given, http=http, fleet=FleetConfig()))
        self._server.wait_ready(START_SECONDS)
        self._directory = DirectoryClient(application)
        self._trouble_since: float | None = None
        self._draining = False
        self._reports = asyncio.get_running_loop().create_task(self._report())

    async def check_health(self) -> None:
        """Fails only for what the engine cannot repair itself: Serve would kill what is being repaired."""
        if self._server.exit_code is not None:
            raise RuntimeError(f"the engine has ended with code {self._server.exit_code}")
        if self._trouble_lasts(asyncio.get_running_loop().time()) > REPAIR_SECONDS:
            raise RuntimeError("the engine is not healthy for longer than a repair takes")

    async def __del__(self) -> None:
        """Serve calls it when the replica is to end: no new requests, and the running ones end."""
        self._draining = True
        self._server.drain()
        while self._server.exit_code is None:  # meanwhile it reports, so that fronts keep their connections
            await asyncio.sleep(0.1)
        self._reports.cancel()
        await self._directory.leave(self._name)

    async def _report(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time()
            load = await loop.run_in_executor(None, self._load)
            if load is not None:
                self._trouble_since = None
            elif self._trouble_since is None:
                self._trouble_since = asked
            facts = self._server.facts
            known = ReplicaFacts(
                url=self._server.base_url,
                kv_tokens=facts["kv_tokens"],
                accepting=not self._draining and self._trouble_lasts(loop.time()) < 2 * PERIOD,
                work=load or 0.0,
            )
            if self._server.exit_code is None:
                await self._directory.report(self._name, known)
            await asyncio.sleep(PERIOD)

    def _trouble_lasts(self, now: float) -> float:
        """Seconds; 0: there is none."""
        return 0.0 if self._trouble_since is None else now - self._trouble_since

    def _load(self) -> float | None:
        """Tokens that the engine still has to compute, an estimate; None: it is in trouble."""
        try:
            return self._work()
        except (OSError, ValueError, KeyError):
            return None

    def _work(self) -> float:
        numbers = self._get("/token_load")
        kv: float = self._server.facts["kv_tokens"]
        return max(0.0, (numbers["logical_max_load"] - numbers["current_load"]) * kv)

    def _get(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {os.environ[ENVIRONMENT]}"}
        request = urllib.request.Request(self._server.base_url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=2 * PERIOD) as answer:
            return json.load(answer)
