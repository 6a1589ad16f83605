"""Where replicas say that they are there: one small actor of the cluster.

Requests do not pass it. When it dies, Ray starts it again, replicas report within a second, and fronts keep the list
that they have until then.
"""

from __future__ import annotations

import contextlib
from time import monotonic
from typing import Any

import msgspec
import ray

from lightllm_mp.replicas.http_fleet import ReplicaFacts

PERIOD = 1.0
"""Seconds between two reports of a replica."""
FORGOTTEN = 5.0
"""A replica that has not reported for so many seconds is gone."""
NAMESPACE = "lightllm_mp"


class Directory:
    def __init__(self) -> None:
        self._replicas: dict[str, tuple[dict[str, Any], float]] = {}

    def report(self, name: str, facts: dict[str, Any]) -> None:
        self._replicas[name] = facts, monotonic()

    def leave(self, name: str) -> None:
        self._replicas.pop(name, None)

    def replicas(self) -> dict[str, dict[str, Any]]:
        """Those that reported lately."""
        oldest = monotonic() - FORGOTTEN
        self._replicas = {name: found for name, found in self._replicas.items() if found[1] > oldest}
        return {name: facts for name, (facts, _) in self._replicas.items()}


class DirectoryClient:
    """The directory of an application, started by whoever needs it first."""

    def __init__(self, application: str) -> None:
        self._name = f"directory of {application}"
        self._actor: Any = None

    async def report(self, name: str, facts: ReplicaFacts) -> None:
        await self._call("report", name, msgspec.structs.asdict(facts))

    async def leave(self, name: str) -> None:
        await self._call("leave", name)

    async def replicas(self) -> dict[str, ReplicaFacts] | None:
        """None: the directory does not answer."""
        found = await self._call("replicas")
        return None if found is None else {name: ReplicaFacts(**facts) for name, facts in found.items()}

    async def _call(self, method: str, *arguments: Any) -> Any:
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError, ValueError):
            if self._actor is None:
                options = {"name": self._name, "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
                self._actor = ray.remote(Directory).options(num_cpus=0, max_restarts=-1, **options).remote()
            return await getattr(self._actor, method).remote(*arguments)
        self._actor = None
        return None

    def end(self) -> None:
        """Nobody needs it any more."""
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(ray.get_actor(self._name, namespace=NAMESPACE))
