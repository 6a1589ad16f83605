"""The Ray Serve replica. Its engine starts and ends with it. Fronts send requests to the engine's own port."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import urllib.request

import msgspec
import ray
from msgspec.structs import replace
from ray import serve

from lightllm_mp.actors.http.security.keys import ENVIRONMENT, RELAY_ENVIRONMENT
from lightllm_mp.config import Config, FleetConfig
from lightllm_mp.ray.directory import PERIOD, DirectoryClient
from lightllm_mp.ray.remote_node import RemoteNode, free_ports, start_nodes
from lightllm_mp.replicas.autoscaling import TOKENS
from lightllm_mp.replicas.http_fleet import HttpFleet, ReplicaFacts
from lightllm_mp.replicas.routing import ReplicaRouter
from lightllm_mp.replicas.stored_responses import StoredResponses
from lightllm_mp.server import Server

START_SECONDS = 1800.0
HAND_OVER_SECONDS = 20.0
"""Seconds in which a replica that is about to end gives its stored responses to others."""
REPAIR_SECONDS = 300.0
"""No repair takes longer. Serve replaces a replica whose engine does not answer for more seconds."""


class LightLLMReplica:
    """`config`: the engine's configuration, as MessagePack. `key`: the relay key of the fleet. `host`: the address on
    which the engine listens (default: the node's). `tenants`: the number of keys that clients have."""

    NODE: type[RemoteNode] = RemoteNode
    """The class of the actor on each other node."""

    def __init__(self, config: bytes, key: str, application: str, host: str | None = None, tenants: int = 1) -> None:
        given = msgspec.msgpack.decode(config, type=Config)
        address = host or ray.util.get_node_ip_address()
        http = replace(
            given.http,
            host=address,
            port=0,
            max_connections_per_address=0,
            # The front handles what concerns clients.
            api_key_file=None,
            ssl_certfile=None,
            ssl_keyfile=None,
            cors_allow_origin=(),
            allowed_host=(),
            reuse_port=False,
        )
        self._key = os.environ[RELAY_ENVIRONMENT] = key
        # No client has these keys: clients come through the front. Their number divides what tenants share.
        os.environ[ENVIRONMENT] = ",".join(secrets.token_hex(32) for _ in range(max(1, tenants)))
        self._name = serve.get_replica_context().replica_id.unique_id
        supervisor = replace(given.supervisor, drain_delay=0.0)
        own = replace(given, http=http, supervisor=supervisor, fleet=FleetConfig())
        if (nodes := own.engine.nnodes) > 1:
            ports = free_ports(address, nodes)
            own = replace(own, engine=replace(own.engine, nccl_host=address, nccl_port=ports))
            self._nodes = start_nodes(own, key, self.NODE)
        self._server = Server(own)
        self._server.wait_ready(START_SECONDS)
        self._directory = DirectoryClient(application)
        self._trouble_since: float | None = None
        self._work = 0.0
        """Tokens that the engine still has to compute, by its last answer."""
        self._draining = False
        self._reports = asyncio.get_running_loop().create_task(self._report())

    async def check_health(self) -> None:
        """Raises RuntimeError only for what the engine cannot repair itself, because Serve kills a replica that
        fails."""
        if self._server.exit_code is not None:
            raise RuntimeError(f"the engine has ended with code {self._server.exit_code}")
        if self._trouble_lasts(asyncio.get_running_loop().time()) > REPAIR_SECONDS:
            raise RuntimeError("the engine is not healthy for longer than a repair takes")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The metric of the autoscaling policy (replicas/autoscaling.py)."""
        return {TOKENS: self._work}

    async def __del__(self) -> None:
        """Serve calls it before the replica ends. It refuses new requests, hands over stored responses, and drains."""
        self._draining = True
        await self._hand_over()
        self._server.drain()
        while self._server.exit_code is None:  # reports continue, so that fronts keep their connections
            await asyncio.sleep(0.1)
        self._reports.cancel()
        await self._directory.leave(self._name)

    async def _hand_over(self) -> None:
        """Give the stored responses to other replicas."""
        router = ReplicaRouter()
        fleet = HttpFleet(router, self._key)
        await fleet.update(await self._directory.replicas() or {})
        await StoredResponses(fleet, router).hand_over(self._name, HAND_OVER_SECONDS)
        await fleet.close()

    async def _report(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time()
            load = await loop.run_in_executor(None, self._load)
            if load is not None:
                self._trouble_since, self._work = None, load
            elif self._trouble_since is None:
                self._trouble_since = asked
            facts = self._server.facts
            known = ReplicaFacts(
                url=self._server.base_url,
                kv_tokens=facts["kv_tokens"],
                accepting=not self._draining and self._trouble_lasts(loop.time()) < 2 * PERIOD,
                work=self._work,
            )
            if self._server.exit_code is None:
                await self._directory.report(self._name, known)
            await asyncio.sleep(PERIOD)

    def _trouble_lasts(self, now: float) -> float:
        """Seconds since the engine stopped answering; 0 if it answers."""
        return 0.0 if self._trouble_since is None else now - self._trouble_since

    def _load(self) -> float | None:
        """An estimate of the tokens that the engine still has to compute; None if it does not answer."""
        headers = {"Authorization": f"Bearer {os.environ[ENVIRONMENT].split(',')[0]}"}
        request = urllib.request.Request(self._server.base_url + "/token_load", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return float(json.load(answer)["expected_tokens"])
        except (OSError, ValueError, KeyError):
            return None
