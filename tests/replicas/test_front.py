"""The front of a fleet over scripted engines: no part of an answer depends on which engine gave it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lightllm_mp.actors.http import relayed_answer
from lightllm_mp.messages import Generate
from lightllm_mp.replicas import engine_client
from lightllm_mp.replicas.call import RelayCall
from lightllm_mp.replicas.engine_client import EngineClient
from lightllm_mp.replicas.front import FleetFront
from lightllm_mp.replicas.http_fleet import HttpFleet, ReplicaFacts
from lightllm_mp.replicas.routing import ReplicaRouter
from tests.actors.http.test_relay import ASKED, HELLO
from tests.replicas.site_fleet import STREAM, TENANT, ask, fleet, run, timeless


@pytest.mark.parametrize(("path", "asked"), ASKED)
def test_an_answer_is_the_same_whenever_its_replica_is_lost(path: str, asked: dict[str, Any]):
    async def body():
        async with fleet("whole") as (front, _):
            head, whole = await ask(front, path, asked)
            assert head.status == 200
        async with fleet("a", "b", "c") as (front, engines):
            for frame in (0, 2, 5):
                engines.calls.clear()
                engines.lose = dict.fromkeys(("a", "b"), frame)
                found, data = await ask(front, path, asked, **{"X-Request-Id": f"mine{frame}"})
                expected = whole.replace(b"mine", b"mine%d" % frame)
                assert timeless(data) == timeless(expected), (frame, engines.calls)
                assert found.headers["Content-Type"] == head.headers["Content-Type"]
                front._router.report("c", work=1e6)  # so that the next request goes to a or b
            assert front.lost == 0
            assert front.moved >= 2
            for s in engines.sites.values():
                await s.settled(lambda s=s: not s.engine.running and not s.frontend.live)

    run(body)


def test_a_port_that_is_replaced_is_no_lost_replica(monkeypatch: pytest.MonkeyPatch):
    """The connection breaks with every frame, and the engine keeps its request."""

    async def body():
        async with fleet("whole") as (front, _):
            _, whole = await ask(front, "/generate_stream", STREAM)
        async with fleet("a") as (front, engines):
            plain, broken = EngineClient._frames, 0

            async def breaking(self: EngineClient, call: RelayCall) -> AsyncIterator[bytes]:
                nonlocal broken
                seen = 0
                async for piece in plain(self, call):
                    yield piece
                    if (seen := seen + 1) > 2:
                        broken += 1
                        raise ConnectionResetError

            monkeypatch.setattr(EngineClient, "_frames", breaking)
            _, data = await ask(front, "/generate_stream", STREAM)
            assert data == whole
            assert broken > 2
            assert [name for name, _ in engines.calls] == ["a"]

    run(body)


def test_a_replica_that_is_full_is_passed_over():
    async def body():
        async with fleet("a", "b", config={"max_live_requests": 1}, a={"paused": True}, b={}) as (front, engines):
            front._router.report("b", work=1e9)
            first = asyncio.create_task(ask(front, "/generate", STREAM, **{"X-Request-Id": "one"}))
            await engines.sites["a"].settled(lambda: bool(engines.sites["a"].engine.running))
            head, _ = await ask(front, "/generate", STREAM, **{"X-Request-Id": "two"})
            assert head.status == 200
            engines.sites["b"].engine.paused = True
            second = asyncio.create_task(ask(front, "/generate", STREAM, **{"X-Request-Id": "three"}))
            await engines.sites["b"].settled(lambda: bool(engines.sites["b"].engine.running))
            head, data = await ask(front, "/generate", STREAM, **{"X-Request-Id": "four"})
            assert (head.status, json.loads(data)["error"]["code"]) == (429, "overloaded")
            assert "Retry-After" in head.headers
            for s in engines.sites.values():
                s.engine.paused = False
            assert (await first)[0].status == (await second)[0].status == 200

    run(body)


def test_a_client_that_leaves_ends_its_request():
    async def body():
        async with fleet("a", a={"pace": 0.02}) as (front, engines):
            answer = front.answer("POST", "/generate_stream", {}, json.dumps(STREAM).encode())
            await anext(answer)
            await anext(answer)
            await answer.aclose()
            await engines.sites["a"].settled(lambda: not engines.sites["a"].engine.running)
            assert front._router.replicas["a"].work == 0

    run(body)


def test_a_fleet_over_http():
    """A replica that leaves in mid-answer, a client that disconnects, and one that reconnects by POST."""

    async def body():
        async with fleet("whole") as (front, _):
            _, whole = await ask(front, "/generate_stream", STREAM)
        async with fleet("a", "b", a={"pace": 0.02}, b={"pace": 0.02}) as (_, engines):
            router = ReplicaRouter(1)
            over = HttpFleet(router, "between us")
            facts = {
                name: ReplicaFacts(f"http://{s.address[0]}:{s.address[1]}", 4096, work=1e6 * (name == "b"))
                for name, s in engines.sites.items()
            }
            await over.update(facts)
            front = FleetFront(over, router, wait=3.0)
            asking = asyncio.create_task(ask(front, "/generate_stream", STREAM))
            await engines.sites["a"].settled(lambda: bool(engines.sites["a"].engine.running))
            await asyncio.sleep(0.1)
            await over.update({"b": facts["b"]})
            assert (await asking)[1] == whole
            await engines.sites["a"].settled(lambda: not engines.sites["a"].engine.running)

            answer = front.answer("POST", "/generate_stream", {"X-Request-Id": "left"}, json.dumps(STREAM).encode())
            seen = [await anext(answer), await anext(answer)]
            await answer.aclose()
            await engines.sites["b"].settled(lambda: not engines.sites["b"].engine.running)
            again = front.answer(
                "POST",
                "/generate_stream",
                {"X-Request-Id": "left", "Last-Event-ID": "1"},
                json.dumps(STREAM).encode(),
            )
            rest = b"".join([piece async for piece in again if isinstance(piece, bytes)])
            assert seen[1] + rest == whole
            await over.close()

    run(body)


def test_a_silent_engine_is_lost_and_a_slow_one_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_client, "SILENCE", 0.4)
    monkeypatch.setattr(relayed_answer, "ALIVE_SECONDS", 0.1)

    async def body():
        async with fleet("a", "b", a={"paused": True}) as (front, engines):
            front._router.report("b", work=1e6)
            slow = asyncio.create_task(ask(front, "/generate", STREAM))
            await asyncio.sleep(1.0)
            engines.sites["a"].engine.paused = False
            assert (await slow)[0].status == 200
            assert [name for name, _ in engines.calls] == ["a"]
            engines.calls.clear()
            engines.sites["a"].engine.paused = True
            front._router.report("b", work=1e6)
            monkeypatch.setattr(relayed_answer, "ALIVE_SECONDS", 60.0)
            assert (await ask(front, "/generate", STREAM))[0].status == 200
            assert [name for name, _ in engines.calls] == ["a", "b"]

    run(body)


def test_no_replica():
    async def body():
        async with fleet() as (front, _):
            front._wait = 0.2
            head, data = await ask(front, "/generate", STREAM)
            assert (head.status, json.loads(data)["error"]["code"]) == (503, "replica_lost")
        async with fleet("a") as (front, engines):
            engines.lose["a"] = 4
            front._begun_wait = 0.2
            head, data = await ask(front, "/generate_stream", STREAM)
            assert head.status == 200
            assert data.count(b"\n\n") >= 2
            assert b'"replica_lost"' in data.splitlines()[-2]
            assert front.lost == 1

    run(body)


def test_a_request_that_loses_every_replica_is_given_up():
    async def body():
        async with fleet("a", "b", "c", "d", **{name: {"paused": True} for name in "abcd"}) as (front, engines):
            engines.lose = dict.fromkeys("abcd", 0)
            engines.for_ever = set("abcd")
            head, data = await ask(front, "/generate", STREAM)
            assert (head.status, len(engines.calls)) == (502, 3)
            assert "repeatedly" in json.loads(data)["error"]["message"]

    run(body)


def test_a_stream_of_several_prompts_cannot_go_on():
    async def body():
        async with fleet("a", "b") as (front, engines):
            front._router.report("b", work=1e6)
            asked = {"prompt": ["x", "y"], "max_tokens": 20}
            engines.lose["a"] = 0  # the client has no bytes, so the request begins again
            head, data = await ask(front, "/v1/completions", asked)
            assert head.status == 200
            assert len(json.loads(data)["choices"]) == 2
            engines.lose["a"] = 4
            front._router.report("b", work=1e6)
            _, data = await ask(front, "/v1/completions", asked | {"stream": True})
            assert b'"replica_lost"' in data

    run(body)


def test_what_a_replica_keeps_is_found():
    async def body():
        async with fleet("a", "b", "c") as (front, engines):
            for i in range(6):
                _, whole = await ask(front, "/generate", STREAM, **{"X-Request-Id": f"kept{i}"})
                if i == 3:
                    front._owners.clear()  # as if another front had sent them
                head, again = await ask(front, f"/requests/kept{i}", None)
                assert (head.status, again) == (200, whole)
            head, _ = await ask(front, "/requests/never", None)
            assert head.status == 404
            _, stored = await ask(front, "/v1/responses", {"input": "a", "max_output_tokens": 3})
            head, again = await ask(front, f"/v1/responses/{json.loads(stored)['id']}", None)
            assert (head.status, json.loads(again)["id"]) == (200, json.loads(stored)["id"])
            sent = [m for s in engines.sites.values() for m in s.engine.tokenizer if isinstance(m, Generate)]
            assert {m.terms.tenant for m in sent} == {TENANT}

    run(body)


def test_the_deadline_goes_on():
    async def body():
        async with fleet("a", "b", "c", **{name: {"paused": True} for name in "abc"}) as (front, engines):
            engines.lose = {"a": 0, "b": 0}
            front._router.report("c", work=1e6)
            begin = asyncio.get_running_loop().time()
            head, data = await ask(front, "/generate", STREAM, **{"X-Request-Timeout": "1.0"})
            assert (head.status, json.loads(data)["error"]["code"]) == (504, "deadline_exceeded")
            assert asyncio.get_running_loop().time() - begin < 3
            for wrong in ("never", "-1", "0", "nan", "1e9"):
                head, _ = await ask(front, "/generate", STREAM, **{"X-Request-Timeout": wrong})
                assert head.status == 400, wrong

    run(body)


def test_turns_of_a_chat_stay_where_their_prefix_is():
    async def body():
        async with fleet("a", "b", "c", a={}, b={}, c={}) as (front, engines):
            messages = [{"role": "system", "content": "Be careful. " * 100}, *HELLO]
            for turn in range(5):
                _, data = await ask(front, "/v1/chat/completions", {"messages": messages, "max_tokens": 3})
                messages.append(json.loads(data)["choices"][0]["message"] | {"refusal": None})
                messages.append({"role": "user", "content": f"And {turn}?"})
            assert len({name for name, _ in engines.calls}) == 1

    run(body)
