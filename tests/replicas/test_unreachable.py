"""Replicas that a front cannot reach: gone, behind a broken network, or full. They cost a bounded time and no
request."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import pytest

from lightllm_mp.replicas import engine_client
from lightllm_mp.replicas import front as front_module
from lightllm_mp.replicas.call import RelayCall, ReplicaLost
from lightllm_mp.replicas.engine_client import EngineClient
from lightllm_mp.replicas.front import FleetFront
from lightllm_mp.replicas.http_fleet import HttpFleet, ReplicaFacts
from lightllm_mp.replicas.routing import ReplicaRouter
from tests.replicas.site_fleet import STREAM, ask, fleet, run
from tests.replicas.tcp_proxy import TcpProxy, tcp_proxy

NOBODY = "http://127.0.0.1:1"
"""An address that refuses connections."""


class Proxied:
    """A front that reaches replicas through proxies."""

    def __init__(self, front: FleetFront, over: HttpFleet, facts: dict[str, ReplicaFacts]) -> None:
        self.front, self.over, self.facts = front, over, facts
        self.proxies: dict[str, TcpProxy] = {}
        self.router = front._router

    async def update(self, **work: float) -> None:
        """Update the fleet with what the directory would report."""
        facts = {name: ReplicaFacts(f.url, f.kv_tokens, work=work.get(name, 0.0)) for name, f in self.facts.items()}
        await self.over.update(facts)


@contextlib.asynccontextmanager
async def proxied(*names: str, **options: Any) -> AsyncIterator[Proxied]:
    async with fleet(*names, **options) as (_, engines), contextlib.AsyncExitStack() as stack:
        router = ReplicaRouter(1)
        over = HttpFleet(router, "between us")
        found = Proxied(FleetFront(over, router, wait=3.0, begun_wait=6.0), over, {})
        for name, s in engines.sites.items():
            proxy = found.proxies[name] = await stack.enter_async_context(tcp_proxy(*s.address))
            found.facts[name] = ReplicaFacts(f"http://127.0.0.1:{proxy.port}", 4096)
        try:
            yield found
        finally:
            await over.close()


async def whole() -> bytes:
    async with fleet("whole") as (front, _):
        return (await ask(front, "/generate_stream", STREAM))[1]


def test_a_partition_in_mid_stream(monkeypatch: pytest.MonkeyPatch):
    """No peer closes the connection; it is silent. The front continues at another replica and returns after the
    repair."""
    monkeypatch.setattr(engine_client, "SILENCE", 0.5)
    monkeypatch.setattr(engine_client, "LOOK", engine_client.aiohttp.ClientTimeout(total=0.2))

    async def body():
        expected = await whole()
        async with proxied("a", "b", a={"pace": 0.03}, b={"pace": 0.001}) as found:
            await found.update(b=1e6)
            answer = found.front.answer(
                "POST", "/generate_stream", {"X-Request-Id": "mine"}, json.dumps(STREAM).encode()
            )
            pieces = [await anext(answer) for _ in range(5)]
            found.proxies["a"].partition()
            begin = monotonic()
            pieces += [piece async for piece in answer]
            assert b"".join(piece for piece in pieces if isinstance(piece, bytes)) == expected
            assert 0.4 < monotonic() - begin < 20
            assert (found.front.moved, found.front.lost) == (1, 0)

            await found.update(b=1e6)  # the directory still gets its reports
            assert not found.router.replicas["a"].accepting
            assert (await ask(found.front, "/generate_stream", STREAM))[1] == expected
            assert (found.front.moved, found.front.lost) == (1, 0)  # no other request waits for it

            found.proxies["a"].mend()
            while not found.router.replicas["a"].accepting:
                await asyncio.sleep(0.05)
                await found.update(b=1e6)
            moved = found.front.moved
            assert (await ask(found.front, "/generate_stream", STREAM))[1] == expected
            assert found.front.moved == moved

    run(body)


def test_replicas_that_are_gone_cost_a_request_nothing():
    """There are more of them than a request may lose. A replica that never got the request does not count."""

    async def body():
        expected = await whole()
        async with proxied("a") as found:
            gone = {f"gone{i}": ReplicaFacts(NOBODY, 4096) for i in range(5)}
            found.facts |= gone
            await found.update(a=1e6)
            begin = monotonic()
            assert (await ask(found.front, "/generate_stream", STREAM))[1] == expected
            assert monotonic() - begin < 10
            assert (found.front.moved, found.front.lost) == (0, 0)
            await found.update(a=1e6)
            assert [name for name, replica in found.router.replicas.items() if replica.accepting] == ["a"]

    run(body)


def test_an_engine_that_is_gone_is_lost_at_once():
    async def body():
        client = EngineClient(NOBODY, "between us")
        begin = monotonic()
        with pytest.raises(ReplicaLost, match="gone") as lost:
            await anext(client.call(RelayCall(method="GET", path="/health", headers={})))
        assert not lost.value.reached
        assert not client.reachable
        assert monotonic() - begin < 5
        await client.close()

    run(body)


def test_a_begun_request_waits_for_replicas_that_are_full(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(front_module, "AVOIDED", 0.3)

    async def body():
        expected = await whole()
        async with fleet("a", "b", config={"max_live_requests": 1}, b={"paused": True}) as (front, engines):
            full = asyncio.create_task(ask(front, "/generate", STREAM, **{"X-Request-Id": "other"}))
            front._router.report("a", work=1e6)
            await engines.sites["b"].settled(lambda: bool(engines.sites["b"].engine.running))
            front._router.report("a", work=0.0)
            front._router.report("b", work=1e6)
            engines.lose["a"] = 4
            asking = asyncio.create_task(ask(front, "/generate_stream", STREAM))
            while ("b", "/relay") not in engines.calls:
                await asyncio.sleep(0.01)
            front._router.accept("a", False)
            await asyncio.sleep(1.2)  # more than three attempts
            engines.sites["b"].engine.paused = False
            assert (await asking)[1] == expected
            assert (await full)[0].status == 200
            assert front.lost == 0

    run(body)
