"""A front over scripted engines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from lightllm_mp.actors.http.security.keys import ApiKeys, digest
from lightllm_mp.replicas.call import RelayCall, ReplicaLost
from lightllm_mp.replicas.engine_client import EngineClient
from lightllm_mp.replicas.frames import Head
from lightllm_mp.replicas.front import FleetFront
from lightllm_mp.replicas.routing import ReplicaRouter
from tests.actors.http.harness import Engine, Site, site
from tests.actors.http.test_relay import KEYS
from tests.replicas.journals import journal

TENANT = digest("user")
STREAM = {"inputs": "a", "parameters": {"max_new_tokens": 12}}


class Engines:
    """Sites as replicas. `lose`: replica -> the number of frames after which it is lost once."""

    def __init__(self, sites: dict[str, Site]) -> None:
        self.sites = sites
        self.clients = {
            name: EngineClient(f"http://{s.address[0]}:{s.address[1]}", "between us", patience=2.0)
            for name, s in sites.items()
        }
        self.lose: dict[str, int] = {}
        self.for_ever: set[str] = set()
        """Replicas of `lose` that are lost every time."""
        self.calls: list[tuple[str, str]] = []

    async def call(self, name: str, call: RelayCall) -> AsyncIterator[list[bytes]]:
        self.calls.append((name, call.path))
        answer = self.clients[name].call(call)
        try:
            async for piece in answer:
                if name in self.lose:
                    self.lose[name] -= 1
                    if self.lose[name] < 0:
                        if name not in self.for_ever:
                            del self.lose[name]
                        raise ReplicaLost("killed")
                yield piece
        finally:
            await answer.aclose()


@contextlib.asynccontextmanager
async def fleet(*names: str, keys: ApiKeys = KEYS, **options: Any) -> AsyncIterator[tuple[FleetFront, Engines]]:
    async with contextlib.AsyncExitStack() as stack:
        sites = {}
        for name in names:
            memory = stack.enter_context(journal())
            engine = Engine(**options.get(name, {"pace": 0.001}))
            sites[name] = await stack.enter_async_context(
                site(journal=memory, engine=engine, keys=keys, **options.get("config", {}))
            )
        engines, router = Engines(sites), ReplicaRouter(1)
        for name in names:
            router.join(name, kv_tokens=4096)
        yield FleetFront(engines, router, wait=3.0, begun_wait=6.0), engines
        for client in engines.clients.values():
            await client.close()


async def ask(front: FleetFront, path: str, asked: Any, **headers: str) -> tuple[Head, bytes]:
    method = "GET" if asked is None else "POST"
    body = b"" if asked is None else json.dumps(asked).encode()
    pieces = [piece async for piece in front.answer(method, path, {"X-Request-Id": "mine", **headers}, body, TENANT)]
    head = pieces[0]
    assert isinstance(head, Head)
    rest = [piece for piece in pieces[1:] if isinstance(piece, bytes)]
    assert len(rest) == len(pieces) - 1
    return head, b"".join(rest)


def timeless(data: bytes) -> bytes:
    return re.sub(rb'"(created|created_at|completed_at)":[0-9.]+', b"", data)


def run(body: Callable[[], Awaitable[None]], seconds: float = 60.0) -> None:
    async def main() -> None:
        async with asyncio.timeout(seconds):
            await body()

    asyncio.run(main())
