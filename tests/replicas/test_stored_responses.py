"""Stored responses of a fleet: they survive the death of a replica, and any replica can continue a chat."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightllm_mp.actors.http.security.keys import digest
from lightllm_mp.messages import Generate, Health
from lightllm_mp.replicas.frames import Head
from lightllm_mp.replicas.front import FleetFront
from tests.actors.http.harness import Site
from tests.replicas.site_fleet import STREAM, TENANT, ask, fleet, run

RESPONSES = "/v1/responses"


async def respond(front: FleetFront, text: str, previous: str = "", **more: Any) -> dict[str, Any]:
    asked = {"input": text, "max_output_tokens": 3, "previous_response_id": previous or None, **more}
    head, data = await ask(front, RESPONSES, asked, **{"X-Request-Id": f"of {text}"})  # not a label: gets a new one
    assert head.status == 200, data
    await front.stored.settled()
    return json.loads(data)


def said(s: Site) -> list[list[Any]]:
    """The messages of all chats that a site has begun."""
    return [json.loads(m.chat.messages) for m in s.engine.tokenizer if isinstance(m, Generate) and m.chat is not None]


@pytest.mark.parametrize("other", [False, True], ids=["the same front", "another front"])
def test_a_response_outlives_its_replica(other: bool):
    async def body():
        async with fleet("a", "b", "c", a={}, b={}, c={}) as (front, engines):
            later = FleetFront(engines, front._router, wait=3.0) if other else front
            for i in range(6):
                first = await respond(front, f"one {i}")
                maker = engines.calls[-2][0]  # the last call is the copy
                assert engines.calls[-1][1] == "/relay"
                engines.lose[maker], engines.for_ever = -1, {maker}
                front._router.accept(maker, False)
                head, again = await ask(later, f"{RESPONSES}/{first['id']}", None)
                assert (head.status, json.loads(again)["output"]) == (200, first["output"])
                second = await respond(later, f"two {i}", first["id"])
                holder = next(name for name, path in reversed(engines.calls) if path == RESPONSES)
                assert holder != maker
                assert [m["content"] for m in said(engines.sites[holder])[-1]][::2] == [f"one {i}", f"two {i}"]
                engines.for_ever.clear()
                engines.lose.clear()
                front._router.accept(maker, True)
                third = await respond(later, f"three {i}", second["id"])
                assert third["previous_response_id"] == second["id"]
            assert front.stored.without_copy == 0

    run(body)


def test_a_turn_goes_on_where_its_response_is_not():
    """The two replicas that have the response take no requests, so the third one gets it."""

    async def body():
        async with fleet("a", "b", "c", a={}, b={}, c={}) as (front, engines):
            first = await respond(front, "one", stream=False)
            maker, copy = (name for name, _ in engines.calls)
            (third,) = {"a", "b", "c"} - {maker, copy}
            for name in (maker, copy):
                front._router.accept(name, False)
            await respond(front, "two", first["id"])
            assert [m["content"] for m in said(engines.sites[third])[-1]][::2] == ["one", "two"]
            assert len([path for _, path in engines.calls if path == RESPONSES]) == 3  # refused once, then answered

    run(body)


def test_only_what_is_stored_is_copied_and_a_deletion_reaches_all():
    async def body():
        async with fleet("a", "b", "c", a={}, b={}, c={}) as (front, engines):
            await respond(front, "one", store=False)
            await ask(front, "/generate", STREAM)
            await front.stored.settled()
            assert {path for _, path in engines.calls} == {RESPONSES, "/generate"}
            first = await respond(front, "one")
            path = f"{RESPONSES}/{first['id']}"
            pieces = [piece async for piece in front.answer("DELETE", path, {}, b"", TENANT)]
            assert isinstance(pieces[0], Head)
            assert (pieces[0].status, json.loads(pieces[1])["deleted"]) == (200, True)  # type: ignore[arg-type]
            assert all(not s.frontend.retained.knows((TENANT, first["id"][5:])) for s in engines.sites.values())
            assert (await ask(front, path, None))[0].status == 404
            head, data = await ask(front, RESPONSES, {"input": "a", "previous_response_id": first["id"]})
            assert (head.status, json.loads(data)["error"]["code"]) == (400, "previous_response_not_found")

    run(body)


def test_a_response_is_for_its_key_alone():
    async def body():
        async with fleet("a", "b", a={}, b={}) as (front, _):
            first = await respond(front, "one")
            asked = json.dumps({"input": "two", "previous_response_id": first["id"]}).encode()
            for method, path, data in (("POST", RESPONSES, asked), ("GET", f"{RESPONSES}/{first['id']}", b"")):
                pieces = [piece async for piece in front.answer(method, path, {}, data, digest("another"))]
                assert isinstance(pieces[0], Head)
                assert pieces[0].status in (400, 404)

    run(body)


def test_a_copy_is_refused_by_full_replicas():
    async def body():
        async with fleet("a", "b", a={}, b={}) as (front, engines):
            for s in engines.sites.values():
                s.frontend.health(Health(ok=True, draining=True))
                s.frontend.stay(True)  # it answers, but stores nothing
            await respond(front, "one")
            assert front.stored.without_copy == 1

    run(body)


def test_a_replica_that_is_to_end_gives_its_responses_to_others():
    """Replicas are replaced one after another, as by a rolling update: no response is lost."""

    async def body():
        names = ("a", "b", "c", "d", "e", "f")
        async with fleet(*names, **{name: {} for name in names}) as (front, engines):
            for name in "def":
                front._router.accept(name, False)
            made = [await respond(front, f"one {i}") for i in range(4)]
            for old, new in zip("abc", "def", strict=True):
                front._router.accept(new, True)
                front._router.accept(old, False)
                await front.stored.hand_over(old, 5.0)
                front._router.leave(old)
            for i, first in enumerate(made):
                holders = [n for n in "def" if engines.sites[n].frontend.retained.knows((TENANT, first["id"][5:]))]
                assert len(holders) == 2, (i, holders)
                second = await respond(front, f"two {i}", first["id"])
                assert second["previous_response_id"] == first["id"]

    run(body)
