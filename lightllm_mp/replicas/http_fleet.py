"""A fleet whose engines the front reaches over HTTP, on any machine."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator

from msgspec import Struct

from lightllm_mp.replicas.call import RelayCall, ReplicaLost
from lightllm_mp.replicas.engine_client import EngineClient
from lightllm_mp.replicas.routing import ReplicaRouter


class ReplicaFacts(Struct, frozen=True):
    """What a replica reports about itself."""

    url: str
    kv_tokens: int
    images: int = 0
    accepting: bool = True
    work: float = 0.0
    """Tokens that the replica still has to compute."""


class HttpFleet:
    """`key`: the relay key of all engines."""

    def __init__(self, router: ReplicaRouter, key: str) -> None:
        self._router, self._key = router, key
        self._clients: dict[str, EngineClient] = {}
        self._urls: dict[str, str] = {}

    async def update(self, replicas: dict[str, ReplicaFacts]) -> None:
        """Set the replicas. Requests of those that are gone continue elsewhere at once. A replica that this front
        cannot reach gets no request until it answers."""
        for name in [name for name in self._clients if name not in replicas or replicas[name].url != self._urls[name]]:
            self._router.leave(name)
            await self._clients.pop(name).close()
            del self._urls[name]
        for name, facts in replicas.items():
            if name not in self._clients:
                lost = functools.partial(self._unreachable, name, facts.url)
                self._clients[name] = EngineClient(facts.url, self._key, on_lost=lost)
                self._urls[name] = facts.url
                self._router.join(name, kv_tokens=facts.kv_tokens, images=facts.images)
            self._clients[name].look()
            self._accept(name, facts.accepting and self._clients[name].reachable)
            self._router.report(name, work=max(0.0, facts.work - self._router.replicas[name].work))

    def call(self, name: str, call: RelayCall) -> AsyncGenerator[list[bytes], None]:
        """As `Fleet.call`."""
        client = self._clients.get(name)
        return client.call(call) if client is not None else _left()

    async def close(self) -> None:
        await self.update({})

    def _unreachable(self, name: str, url: str) -> None:
        if self._urls.get(name) == url:
            self._accept(name, False)

    def _accept(self, name: str, accepting: bool) -> None:
        if self._router.replicas[name].accepting != accepting:
            self._router.accept(name, accepting)


async def _left() -> AsyncGenerator[list[bytes], None]:
    raise ReplicaLost("it has left", reached=False)
    yield []
