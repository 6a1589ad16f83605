"""What the front of a fleet decides and answers itself, in the aiohttp server (port.py) and under ASGI (asgi.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from lightllm_mp.actors.http.security.auth import NO_KEY, Access, given_key
from lightllm_mp.actors.http.security.keys import ApiKeys, is_known
from lightllm_mp.errors import Unauthorized, Unavailable
from lightllm_mp.replicas.fleet_metrics import merged, own_metrics
from lightllm_mp.replicas.frames import Head
from lightllm_mp.replicas.front import FleetFront

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LOOK = ("GET", "HEAD")


class FrontDoor:
    """Checks keys, answers requests that concern the whole fleet, and refuses new requests while it drains."""

    def __init__(self, front: FleetFront, keys: ApiKeys) -> None:
        self.front, self._keys = front, keys
        self.leaving = self.draining = False
        """`leaving`: readiness fails, so no more clients come. `draining`: new requests are refused."""
        self._live = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    def admitted(self, method: str, headers: Mapping[str, str]) -> tuple[bytes, Access]:
        """The tenant, and what its key permits. `headers` is indexed by names in lower case, or ignores case. A client
        without a known key may only read what is public, which a replica decides. Raises Unauthorized."""
        given = given_key(headers.get("authorization", ""), headers.get("x-api-key", ""))
        if not self._keys:
            return b"", "admin"
        user, admin = is_known(given, self._keys.users), is_known(given, self._keys.admins)
        if user or admin:
            return given, "admin" if admin else "user"
        if method not in LOOK:
            raise Unauthorized(NO_KEY)
        return b"", "public"

    async def own(self, method: str, path: str, access: Access, tenant: bytes) -> tuple[Head, bytes] | None:
        """The answer to a request that concerns the whole fleet; None if a replica answers it. Raises Unauthorized."""
        if path in ("/health", "/healthz") and method in LOOK:
            accepting, known = self.front.accepting, len(self.front.replicas)
            ready = accepting > 0
            said = {"message": "Ok" if ready else "Error"} | ({} if ready else {"reason": "no replica is ready"})
            return _json(said | {"replicas": known, "accepting": accepting}, 200 if ready else 503)
        if path == "/liveness" and method in (*LOOK, "POST"):
            return _json({"status": "ok"})
        if path == "/readiness" and method in (*LOOK, "POST"):
            if self.front.accepting and not self.leaving:
                return _json({"status": "ok"})
            return _json({"status": "error", "reason": "draining" if self.leaving else "no replica is ready"}, 503)
        if path in ("/metrics", "/token_load") and method in LOOK:
            found = await self.front.ask_all(path, tenant, access)
            if access == "public" and not any(status == 200 for status, _ in found.values()):
                raise Unauthorized(NO_KEY)
            bodies = {name: body for name, (status, body) in found.items() if status == 200}
            if path == "/metrics":
                page = merged({name: body.decode() for name, body in bodies.items()}, self._own_metrics())
                return Head(200, {"Content-Type": METRICS_TYPE}), page.encode()
            return _json(_mean([msgspec.json.decode(body, type=dict[str, float]) for body in bodies.values()]))
        return None

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Counts a request that goes to replicas. Raises Unavailable while the front drains."""
        if self.draining:
            raise Unavailable("the server is shutting down")
        self._live += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._live -= 1
            if not self._live:
                self._quiet.set()

    async def quiet(self) -> None:
        """Waits until no request is at a replica."""
        await self._quiet.wait()

    def _own_metrics(self) -> str:
        front = self.front
        return own_metrics(
            (
                ("lightllm_fleet_replicas", "gauge", "Replicas that are known", len(front.replicas)),
                ("lightllm_fleet_replicas_accepting", "gauge", "Replicas that take requests", front.accepting),
                ("lightllm_fleet_live_requests", "gauge", "Requests that the front holds", self._live),
                ("lightllm_fleet_moved_total", "counter", "Requests that went on at another replica", front.moved),
                ("lightllm_fleet_lost_total", "counter", "Requests that could not go on", front.lost),
                (
                    "lightllm_fleet_stored_alone_total",
                    "counter",
                    "Stored responses that one replica has alone",
                    front.stored.without_copy,
                ),
            )
        )


def _json(value: Any, status: int = 200) -> tuple[Head, bytes]:
    return Head(status, {"Content-Type": "application/json"}), msgspec.json.encode(value)


def _mean(loads: list[dict[str, float]]) -> dict[str, float]:
    """The mean of shares, and the sum of counts of tokens."""
    names = {name for load in loads for name in load}
    sums = {name: sum(load.get(name, 0.0) for load in loads) for name in sorted(names)}
    return {name: value if name.endswith("_tokens") else value / len(loads) for name, value in sums.items()}
