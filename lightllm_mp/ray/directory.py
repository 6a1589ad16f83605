"""The directory of replicas: a small Ray actor to which replicas report and which fronts ask for the list.

Requests do not pass through it. When it dies, Ray restarts it and replicas report within a second. Fronts keep their
list while the directory does not answer, and until it has run long enough to know which replicas are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import msgspec
import ray

from lightllm_mp.replicas.http_fleet import HttpFleet, ReplicaFacts

PERIOD = 1.0
"""Seconds between two reports of a replica."""
FORGOTTEN = 5.0
"""Seconds without a report after which a replica counts as gone."""
PATIENCE = 3.0
"""Seconds that the directory has to answer."""
NAMESPACE = "lightllm_mp"


class Directory:
    """Lists the replicas that report. Between two calls its clock advances by at most PERIOD, so a pause of the
    directory itself removes no replica."""

    def __init__(self) -> None:
        self._replicas: dict[str, tuple[dict[str, Any], float]] = {}
        self._clock, self._asked = 0.0, monotonic()

    def report(self, name: str, facts: dict[str, Any]) -> None:
        self._replicas[name] = facts, self._now()

    def leave(self, name: str) -> None:
        self._replicas.pop(name, None)

    def replicas(self) -> tuple[dict[str, dict[str, Any]], bool]:
        """The replicas that reported lately, and whether the list is complete: each has had the time to report."""
        oldest = self._now() - FORGOTTEN
        self._replicas = {name: found for name, found in self._replicas.items() if found[1] > oldest}
        return {name: facts for name, (facts, _) in self._replicas.items()}, oldest > 0

    def _now(self) -> float:
        now = monotonic()
        self._clock += min(now - self._asked, PERIOD)
        self._asked = now
        return self._clock


class DirectoryClient:
    """Calls the directory of an application. The first client that needs the directory starts it."""

    def __init__(self, application: str) -> None:
        self._name = f"directory of {application}"
        self._actor: Any = None
        self._known: dict[str, ReplicaFacts] = {}
        self._finder = ThreadPoolExecutor(1, "directory")
        """A thread for looking up the actor: Ray blocks the caller, for minutes if the head node is unreachable."""

    async def report(self, name: str, facts: ReplicaFacts) -> None:
        await self._call("report", name, msgspec.structs.asdict(facts))

    async def leave(self, name: str) -> None:
        await self._call("leave", name)

    async def replicas(self) -> dict[str, ReplicaFacts] | None:
        """All known replicas by name; None if the directory does not answer."""
        if (answer := await self._call("replicas")) is None:
            return None
        found, are_all = {name: ReplicaFacts(**facts) for name, facts in answer[0].items()}, answer[1]
        self._known = found if are_all else self._known | found
        return self._known

    async def follow(self, fleet: HttpFleet, asked: asyncio.Event | None = None) -> None:
        """Keep the replicas of a fleet up to date, without end. Sets `asked` when the directory was asked once."""
        while True:
            if (found := await self.replicas()) is not None:
                await fleet.update(found)
            if asked is not None:
                asked.set()
            await asyncio.sleep(PERIOD / 2)

    async def _call(self, method: str, *arguments: Any) -> Any:
        with contextlib.suppress(Exception):  # the errors that Ray raises have no common base
            async with asyncio.timeout(PATIENCE):
                if self._actor is None:
                    self._actor = await asyncio.get_running_loop().run_in_executor(self._finder, self._find)
                return await getattr(self._actor, method).remote(*arguments)
        self._actor = None
        return None

    def _find(self) -> Any:
        options = {"name": self._name, "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
        return ray.remote(Directory).options(num_cpus=0, max_restarts=-1, **options).remote()

    def end(self) -> None:
        """End the directory's actor."""
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(ray.get_actor(self._name, namespace=NAMESPACE))
