"""The Ray Serve application: fronts that hold requests, and replicas that run engines.

serve run lightllm_mp.ray:build_app replicas=4 flags="--model-dir /models/llama --tp 2"
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
from collections.abc import Mapping
from typing import Any

import msgspec
import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from lightllm_mp.actors.http.security.keys import ApiKeys, load_keys, relay_keys
from lightllm_mp.cli.flags import resolve
from lightllm_mp.config import Config, FleetConfig
from lightllm_mp.errors import ConfigError
from lightllm_mp.ray.directory import DirectoryClient
from lightllm_mp.ray.replica import HAND_OVER_SECONDS, LightLLMReplica
from lightllm_mp.replicas.asgi import FrontApp, Receive, Scope, Send
from lightllm_mp.replicas.autoscaling import TokenPolicy
from lightllm_mp.replicas.front import FleetFront
from lightllm_mp.replicas.front_door import FrontDoor
from lightllm_mp.replicas.http_fleet import HttpFleet
from lightllm_mp.replicas.routing import ReplicaRouter

DELAYS = {"upscale": 30.0, "downscale": 600.0}
"""Default seconds for which the work must require more, or fewer, replicas before their number changes."""


class ServedFront:
    """The ASGI application of a front. It polls the directory for replicas while it runs."""

    def __init__(self, application: str, relay_key: str, keys: ApiKeys, max_body_bytes: int) -> None:
        self._router = ReplicaRouter()
        self._fleet, self._directory = HttpFleet(self._router, relay_key), DirectoryClient(application)
        self._app = FrontApp(FrontDoor(FleetFront(self._fleet, self._router), keys), max_body_bytes=max_body_bytes)
        self._watching: asyncio.Task[None] | None = None
        self._known = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._directory.follow(self._fleet, self._known))
        if scope["type"] == "http":
            await self._known.wait()
        await self._app(scope, receive, send)


def build_app(arguments: dict[str, Any] | Config) -> serve.Application:
    """Build the application of a Serve config file. Arguments: `flags`, those of `lightllm-mp serve`; `replicas`;
    `fronts`; `cpus` and `gpus` of a replica (default: one CPU, and `--tp` GPUs unless the flags say `--device cpu` or
    the cluster has no GPU; with `--nnodes` its nodes have equal parts of the GPUs, or without GPUs as many CPUs each);
    `min_replicas`, `max_replicas`, `target_tokens`, as the flags of these names; `upscale_delay` and `downscale_delay`
    in seconds (30, 600); `application`, a name that tells apart several applications of one cluster. Fronts and
    replicas share the first key of LIGHTLLM_MP_RELAY_KEYS. Without it each call makes a key, and fronts of an earlier
    call cannot speak to replicas of a later one. Raises ConfigError."""
    given: dict[str, Any] = {"flags": arguments} if isinstance(arguments, Config) else dict(arguments)
    flags = given.get("flags", "")
    config = flags if isinstance(flags, Config) else resolve(shlex.split(flags), os.environ)[0]
    application = str(given.get("application", "lightllm_mp"))
    keys = load_keys(config.http, os.environ)
    key = next(iter(relay_keys(os.environ)), secrets.token_hex(32))

    def front() -> ServedFront:
        return ServedFront(application, key, keys, config.http.max_body_bytes)

    deployment: Any = serve.deployment  # its own annotation has no options
    ingress = deployment(serve.ingress(front)(_Front)).options(
        name="front",
        num_replicas=int(given.get("fronts", 1)),
        graceful_shutdown_timeout_s=config.supervisor.drain_timeout,
        max_ongoing_requests=100_000,
        ray_actor_options={"num_cpus": 0.1},
    )
    found: serve.Application = ingress.bind(build_replicas(config, key, application, tenants=len(keys), given=given))
    return found


def build_replicas(
    config: Config, key: str, application: str, *, tenants: int, given: Mapping[str, Any] | None = None
) -> serve.Application:
    """Build the replicas without fronts. `key`: the relay key. `tenants`: the number of clients' keys. `given`: the
    arguments of `build_app`. Raises ConfigError."""
    given = given or {}
    on_cpu, nodes = config.model.device == "cpu", config.engine.nnodes
    cpus = float(given.get("cpus", 1))
    gpus = float(given.get("gpus", 0 if on_cpu or not has_gpus() else config.engine.tp)) / nodes
    first = {name: count for name, count in (("CPU", cpus), ("GPU", gpus)) if count}
    other = {"GPU": gpus} if gpus else first
    placement = {"placement_group_bundles": [first, *[other] * (nodes - 1)], "placement_group_strategy": "SPREAD"}
    deployment: Any = serve.deployment  # its own annotation has no options
    replica = deployment(LightLLMReplica).options(
        name="replica",
        **_scale(given, config.fleet),
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        **(placement if nodes > 1 else {}),
        graceful_shutdown_timeout_s=config.supervisor.drain_timeout + HAND_OVER_SECONDS + 5.0,
        health_check_period_s=5.0,
    )
    found: serve.Application = replica.bind(
        msgspec.msgpack.encode(config), key, application, given.get("host"), tenants
    )
    return found


def _scale(given: Mapping[str, Any], flags: FleetConfig) -> dict[str, Any]:
    """Serve's options for the number of replicas. Raises ConfigError."""
    names = ("replicas", "min_replicas", "max_replicas", "target_tokens")
    try:
        fleet = msgspec.convert({name: given.get(name, getattr(flags, name)) for name in names}, FleetConfig)
        delays = {f"{name}_delay_s": float(given.get(f"{name}_delay", most)) for name, most in DELAYS.items()}
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"arguments of the application: {error}") from None
    if fleet.max_replicas is None:
        return {"num_replicas": fleet.replicas}
    bounds: dict[str, Any] = {"min_replicas": fleet.min_replicas, "max_replicas": fleet.max_replicas, **delays}
    policy = AutoscalingPolicy(policy_function=TokenPolicy, policy_kwargs={"target_tokens": fleet.target_tokens})
    return {"autoscaling_config": AutoscalingConfig(initial_replicas=fleet.replicas, policy=policy, **bounds)}


def has_gpus() -> bool:
    """Whether the cluster has GPUs."""
    return ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0


class _Front:
    def __init__(self, replicas: Any) -> None:
        """`replicas` makes Serve deploy them with the front; requests do not pass through its handle."""
