"""GET /live/events: who may watch, how many, how large an event is, and that nobody waits for viewers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest

from lightllm_mp import messages as say
from lightllm_mp.actors.front.request_table import RequestTable
from lightllm_mp.actors.http.live import feed as feeds
from lightllm_mp.actors.http.live.feed import MOST_VIEWERS, LiveFeed
from lightllm_mp.actors.http.live.history import POINTS, LiveHistory
from lightllm_mp.actors.http.live.snapshot import Told, rids_of, shown, snapshot
from lightllm_mp.actors.http.live.snapshot_schema import LiveSnapshot
from lightllm_mp.actors.http.security.keys import ApiKeys
from lightllm_mp.actors.topology import ROUTER, SUPERVISOR, VISUAL
from tests.actors.http.harness import FACTS, Engine, Site, column, run
from tests.actors.http.test_auth import digests

PATH = "/live/events"
BODY = {"inputs": "my prompt", "parameters": {"max_new_tokens": 8}}
LARGEST = 200_000
"""Bytes of the largest event."""
LAST = 300


def engine_state(state: say.ServerState = "running") -> say.EngineState:
    actors = tuple(say.ActorState(f"worker{rank}", "ready", 4_000_000 + rank, 1e5, 3, "x" * 40) for rank in range(24))
    lanes = tuple(say.LaneState("detokenizer", f"worker{lane}", 1 << 20, 1 << 20, 10**9, 10**6) for lane in range(64))
    return say.EngineState(state, 5, 1.5, actors, lanes)


def scheduler_state(rids: bytes) -> say.SchedulerState:
    number, cells = len(rids) // 8, 2048
    long = column("i", [100_000] * number)
    return say.SchedulerState(
        rids, b"\5" * number, long, long, long, 512, b"\x64" * cells, b"\x64" * cells, b"\1" * cells, 10**6, 10**5
    )


def image_state() -> say.ImageCacheState:
    images = tuple(say.ImageState(b"abcd", 1024, 1 << 22, True, 2, 1234.5) for _ in range(say.MOST_SHOWN))
    return say.ImageCacheState(2000, 2000, 1 << 32, 1 << 33, 500, 3, 4, images)


class Others:
    """The actors that are asked. `silent` ones take the question and say nothing."""

    def __init__(self, *silent: str) -> None:
        self.silent, self.asked = silent, list[str]()
        self.feed: LiveFeed = None  # type: ignore[assignment]
        states = {
            "state_checkpoints": 7.0,
            "state_checkpoints_used": 5.0,
            "kv_window_used": 3.0,
            "kv_window_total": 9.0,
        }
        self.pages = {"router": {"running": 2.0, "generation_tokens": 0.0, **states}, "worker": {}}

    def ask(self, peer: str, message: say.Inspect) -> bool:
        self.asked.append(peer)
        if peer not in self.silent:
            answer = {SUPERVISOR: engine_state(), ROUTER: scheduler_state(message.rids), VISUAL: image_state()}[peer]
            asyncio.get_running_loop().call_soon(self.feed.take, answer)
        return True

    def site(self, **options):
        """Options of `run`."""

        def make(frontend: RequestTable) -> LiveFeed:
            self.feed = LiveFeed(
                frontend, self.ask, LiveHistory(lambda: self.pages["router"], lambda: self.pages["worker"])
            )
            return self.feed

        return {"feed": make, **options}


@contextlib.asynccontextmanager
async def watching(s: Site, **options) -> AsyncIterator[AsyncIterator[dict]]:
    async with s.session.get(PATH, **options) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield events(response)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict]:
    async for line in response.content:
        if line.startswith(b"data:"):
            msgspec.json.decode(line[5:], type=LiveSnapshot)  # as documented
            yield json.loads(line[5:])


def test_the_first_event_is_whole_and_waits_for_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "INTERVAL", 1e4)
    others = Others()

    async def body(s: Site) -> None:
        async with watching(s) as seen:
            first = await anext(seen)
            assert set(first) == set(LiveSnapshot.__struct_fields__)
            engine = first["engine"]
            assert (engine["state"], engine["model_name"], engine["viewers"]) == ("running", "fake", 1)
            assert len(first["actors"]) == 24
            assert first["kv"]["total"] == FACTS.engine.kv_tokens
            assert first["images"]["more"] == 1800
            async with watching(s) as later:  # gets what the first one has got
                assert (await anext(later))["number"] == first["number"]

    run(body, **others.site())


def test_nobody_is_asked_while_nobody_watches() -> None:
    others = Others()

    async def body(s: Site) -> None:
        assert others.asked == []
        async with watching(s) as seen:
            await anext(seen)
        asked = len(others.asked)
        assert asked >= 3
        await s.settled(lambda: others.feed._task is None)
        asked = len(others.asked)
        await asyncio.sleep(1.2)
        assert len(others.asked) == asked
        async with watching(s) as seen:  # again, from the start
            assert (await anext(seen))["engine"]["viewers"] == 1

    run(body, **others.site())


def test_at_most_eight_watch() -> None:
    async def body(s: Site) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(MOST_VIEWERS):
                await anext(await stack.enter_async_context(watching(s)))
            status, text, headers = await s.get(PATH)
            assert (status, json.loads(text)["error"]["code"]) == (429, "overloaded")
            assert "Retry-After" in headers
        await s.settled(lambda: others.feed._viewers == 0)
        async with watching(s) as seen:
            await anext(seen)

    others = Others()
    run(body, **others.site())


def test_with_keys_it_is_for_admins() -> None:
    keys = ApiKeys(users=digests("user-key"), admins=digests("boss"))

    async def body(s: Site) -> None:
        assert (await s.get(PATH))[0] == 401
        assert (await s.get(PATH, headers={"Authorization": "Bearer user-key"}))[0] == 403
        async with watching(s, headers={"Authorization": "Bearer boss"}) as seen:
            await anext(seen)

    run(body, keys=keys)


def test_pages_of_other_hosts_may_not_watch() -> None:
    async def body(s: Site) -> None:
        assert (await s.get(PATH, headers={"Host": "evil.example"}))[0] == 403
        assert (await s.get(PATH, headers={"Origin": "https://evil.example"}))[0] == 403
        assert (await s.post(PATH, b""))[0] == 405

    run(body)


def test_requests_and_their_stages_without_what_they_say() -> None:
    others = Others()

    async def body(s: Site) -> None:
        s.engine.paused = True
        asked = asyncio.create_task(
            s.post("/generate", BODY, headers={"X-Request-Id": "my-secret-name", "Authorization": "Bearer boss"})
        )
        await s.settled(lambda: s.frontend.live == 1)
        async with watching(s, headers={"Authorization": "Bearer boss"}) as seen:
            event = await anext(seen)
            (row,) = event["requests"]["rows"]
            assert (row["stage"], row["produced"], row["most"], row["first"]) == ("decode", 0, 8, None)
            assert event["requests"]["live"] == 1
            assert len(row["label"]) == len(row["client"]) == 8
            text = json.dumps(event)
            assert not any(secret in text for secret in ("my-secret-name", "my prompt", "boss"))
            s.engine.crash()
            others.feed.changed()
            repairing = await anext(seen)
            assert [one["stage"] for one in repairing["requests"]["rows"]] == ["repair"]
            s.engine.paused = False
            s.engine.begin()
            assert (await asked)[0] == 200
            async for event in seen:
                if not event["requests"]["rows"]:
                    break

    run(body, keys=ApiKeys(admins=digests("boss")), **others.site())


def test_what_is_said_before_the_start_and_in_a_repair() -> None:
    async def body(s: Site) -> None:
        async with watching(s) as seen:
            assert (await anext(seen))["engine"]["state"] == "starting"
            s.engine.begin()
            assert (await anext(seen))["engine"]["state"] == "running"
            s.engine.crash()
            assert (await anext(seen))["engine"]["state"] == "repairing"

    run(body, begun=False)


def test_a_drain_ends_the_stream() -> None:
    others = Others()

    async def body(s: Site) -> None:
        async with watching(s) as seen:
            await anext(seen)
            s.frontend.health(say.Health(ok=True, draining=True))
            others.feed.changed()
            assert [event["engine"]["draining"] async for event in seen] == [True]
        assert (await s.get(PATH))[0] == 503

    run(body, **others.site())


def test_a_stop_ends_the_stream() -> None:
    others = Others()

    async def body(s: Site) -> None:
        async with watching(s) as seen:
            await anext(seen)
            others.feed.close()
            assert [event async for event in seen] == []

    run(body, **others.site())


def test_actors_that_say_nothing_hold_nothing_up() -> None:
    others = Others(SUPERVISOR, ROUTER, VISUAL)

    async def body(s: Site) -> None:
        async with watching(s) as seen:
            event = await anext(seen)
            assert (event["actors"], event["images"], event["kv"]["cell_slots"]) == ([], None, 0)
            assert event["engine"]["state"] == "running"
            assert event["requests"]["running"] == 2  # from shared memory
            assert (event["kv"]["states"], event["kv"]["states_total"]) == (5, 7)
            assert (event["kv"]["windows"], event["kv"]["windows_total"]) == (3, 9)

    run(body, **others.site())


def test_late_answers_are_not_taken_for_those_of_other_sequences() -> None:
    async def body(s: Site) -> None:
        others.feed._rids = column("q", [1, 2])
        others.feed.take(scheduler_state(column("q", [1])))
        assert others.feed._told.scheduler is None
        others.feed.take(scheduler_state(column("q", [1, 2])))
        assert others.feed._told.scheduler is not None

    others = Others()
    run(body, **others.site())


def test_an_event_has_a_bounded_size() -> None:
    """A thousand live requests, two thousand images, a million slots, sixteen workers, five minutes."""
    others = Others()

    async def body(s: Site) -> None:
        s.engine.paused = True
        for _ in range(500):
            s.frontend.submit("x" * 1000, say.Terms(say.Sampling(1, max_new_tokens=10**6), n=2), label="x" * 100)
        for second in range(2 * POINTS):
            others.pages["router"]["generation_tokens"] = 1e6 * second
            others.feed._history.sample()
        async with watching(s) as seen:
            first = await anext(seen)
            assert len(first["requests"]["rows"]) == say.MOST_SHOWN
            assert first["requests"]["more"] == 1000 - say.MOST_SHOWN
            assert len(first["history"]) == POINTS
            assert len(json.dumps(first, separators=(",", ":"))) < LARGEST
            second = await anext(seen)
            assert len(second["history"]) == feeds.RECENT
            assert len(json.dumps(second, separators=(",", ":"))) < LARGEST / 2
        begin = time.process_time()
        told = Told(engine_state(), scheduler_state(rids_of(shown(s.frontend))), image_state())
        for number in range(10):
            snapshot(s.frontend, shown(s.frontend), told, {}, number=number, at=0.0, viewers=1, history=[])
        assert (time.process_time() - begin) / 10 < 0.05, "seconds of CPU for the largest event"

    run(body, max_live_requests=1000, **others.site())


def test_a_viewer_that_does_not_read_misses_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "INTERVAL", 0.011)
    monkeypatch.setattr(feeds, "SOONEST", 0.01)
    others = Others()

    async def body(s: Site) -> None:
        s.engine.paused = True
        for _ in range(200):
            s.frontend.submit("x", say.Terms(say.Sampling(1)))
        sock = socket.create_connection(s.address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
        writer.write(b"GET /live/events HTTP/1.1\r\nHost: x\r\n\r\n")
        await s.settled(lambda: others.feed._viewers == 1)
        async with watching(s) as seen:  # goes on
            async for event in seen:
                if event["number"] > LAST:
                    break
        got, numbers = b"", list[int]()
        while not numbers or numbers[-1] < LAST:
            more = await reader.read(1 << 20)
            assert more
            got += more
            numbers += map(int, re.findall(rb'{"number":(\d+),', got))
            got = got[-20:]
        assert sorted(set(numbers)) == numbers
        assert len(numbers) < LAST / 2
        writer.close()

    run(body, max_live_requests=300, **others.site())


def test_history_survives_the_death_of_what_it_counts() -> None:
    pages = {"steps": 10.0, "generation_tokens": 100.0, "kv_used": 7.0}
    worker = {"steps": 10.0, "step_seconds": 1.0}
    history = LiveHistory(lambda: pages, lambda: worker)
    history.sample()
    time.sleep(0.02)
    pages.update(steps=12.0, generation_tokens=108.0, step_rows=8.0, decode_tokens=6.0)
    worker.update(steps=12.0, step_seconds=1.1)
    history.sample()
    time.sleep(0.02)
    pages.update(steps=1.0, generation_tokens=2.0, step_rows=1.0, decode_tokens=1.0)  # a new router
    worker.update(steps=1.0, step_seconds=0.5)
    history.sample()
    first, second = history.last()
    assert (first.step_ms, first.rows, first.decode_tokens, first.kv_used) == (50.0, 4.0, 3.0, 7)
    assert first.generated > 0
    assert (second.step_ms, second.rows) == (500.0, 1.0)
    assert second.generated > 0
    assert len(history.last(1)) == 1


def test_an_engine_without_a_page_has_no_numbers() -> None:
    history = LiveHistory(dict, dict)
    history.sample()
    time.sleep(0.01)
    history.sample()
    (point,) = history.last()
    assert (point.generated, point.step_ms, point.running) == (0.0, 0.0, 0)


def test_a_bug_of_the_view_ends_streams_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    others = Others()

    async def body(s: Site) -> None:
        async with watching(s) as seen:
            await anext(seen)
            monkeypatch.setattr(feeds, "snapshot", lambda *args, **options: 1 / 0)
            assert [event async for event in seen] == []
        monkeypatch.undo()
        async with watching(s) as seen:
            await anext(seen)

    run(body, engine=Engine(), **others.site())
