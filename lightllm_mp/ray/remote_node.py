"""The ranks of a replica on its other nodes (`--nnodes`): one actor in each bundle of its placement group but the
first."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import Any

import msgspec
import ray
from msgspec.structs import replace
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lightllm_mp.actors.http.security.keys import RELAY_ENVIRONMENT
from lightllm_mp.config import Config
from lightllm_mp.server import Server


class RemoteNode:
    """Runs the ranks of one node. `config`: the node's configuration, as MessagePack. `key`: the relay key. The node
    joins the replica, and joins again after the replica is repaired. When its process ends, Ray restarts the actor;
    when its machine is lost, Ray restarts it where it places the bundle again."""

    def __init__(self, config: bytes, key: str) -> None:
        os.environ[RELAY_ENVIRONMENT] = key
        self._server = Server(msgspec.msgpack.decode(config, type=Config))
        threading.Thread(target=self._end_with_it, daemon=True).start()

    def _end_with_it(self) -> None:
        self._server.wait()
        os._exit(1)


def start_nodes(config: Config, key: str, program: type[RemoteNode] = RemoteNode) -> list[Any]:
    """Start the actors of the calling replica's other nodes. `config`: the replica's. They end when the replica
    ends."""
    group = ray.util.get_current_placement_group()
    assert group is not None
    found = []
    for node in range(1, config.engine.nnodes):
        own = replace(config, engine=replace(config.engine, node_rank=node))
        bundle = group.bundle_specs[node]
        options = {
            "num_cpus": bundle.get("CPU", 0),
            "num_gpus": bundle.get("GPU", 0),
            "max_restarts": -1,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node),
        }
        found.append(ray.remote(program).options(**options).remote(msgspec.msgpack.encode(own), key))
    return found


def free_ports(host: str, count: int) -> int:
    """The first of `count` ports in a row that are free now."""
    while True:
        with contextlib.suppress(OSError, OverflowError), contextlib.ExitStack() as stack:
            first: int = stack.enter_context(socket.create_server((host, 0))).getsockname()[1]
            for port in range(first + 1, first + count):
                stack.enter_context(socket.create_server((host, port)))
            return first
