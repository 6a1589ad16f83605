"""Requests that are not begun, or not complete, in time."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from lightllm_mp import messages as say
from lightllm_mp.errors import DeadlineExceeded, QueueTimeout
from lightllm_mp.messages import RUNNING, STOP
from tests.actors.front.front_lanes import FACTS, collect, make, submit, texts


def test_not_begun_in_time():
    async def body():
        frontend, lanes = make(queue_seconds=0.05)
        begin = monotonic()
        waiting, running = submit(frontend), submit(frontend)
        assert begin + 0.05 <= waiting.request.terms.start_by <= monotonic() + 0.05
        frontend.deliver(say.Scheduled(running.rid))
        with pytest.raises(QueueTimeout) as raised:
            await collect(waiting)
        assert (raised.value.status, raised.value.code) == (503, "queue_timeout")
        assert raised.value.retry_after >= 1
        assert lanes.router == [say.Abort(waiting.rid)]
        await asyncio.sleep(0.06)
        frontend.deliver(texts((running.rid, 1, "a", 1, STOP)))
        assert [event.text for event in await collect(running)] == ["a"]

    asyncio.run(body())


def test_not_complete_in_time():
    async def body():
        frontend, lanes = make(queue_seconds=600)
        live = submit(frontend, deadline=monotonic() + 0.05)
        assert live.request.terms.start_by == live.deadline
        frontend.deliver(say.Scheduled(live.rid))
        frontend.deliver(texts((live.rid, 1, "a", 1, RUNNING)))
        assert (await anext(live)).text == "a"
        with pytest.raises(DeadlineExceeded) as raised:
            await anext(live)
        assert raised.value.status == 504
        assert say.Abort(live.rid) in lanes.router

    asyncio.run(body())


def test_without_limits_nothing_is_watched():
    async def body():
        frontend, _ = make()
        live = submit(frontend)
        assert (live.request.terms.start_by, live.timer) == (0.0, None)

    asyncio.run(body())


def test_a_timer_of_a_request_that_is_over_does_nothing():
    async def body():
        frontend, lanes = make(queue_seconds=0.02)
        done, closed = submit(frontend), submit(frontend)
        frontend.deliver(texts((done.rid, 1, "a", 1, STOP)))
        closed.close()
        lanes.router.clear()
        await asyncio.sleep(0.05)
        assert (done.error, closed.error, lanes.router) == (None, None, [])

    asyncio.run(body())


def test_begun_before_a_repair_may_be_late_after_it():
    async def body():
        frontend, lanes = make(queue_seconds=0.05)
        begun, waiting = submit(frontend), submit(frontend)
        frontend.deliver(say.Scheduled(begun.rid))
        frontend.reset()
        lanes.tokenizer.clear()
        frontend.begin(say.Begin(epoch=1, facts=FACTS, restarted=("worker0",)))
        assert [(m.rid, m.terms.begun) for m in lanes.tokenizer] == [(begun.rid, True), (waiting.rid, False)]
        assert lanes.tokenizer[0].terms.start_by == begun.request.terms.start_by
        with pytest.raises(QueueTimeout):
            await collect(waiting)
        assert begun.error is None

    asyncio.run(body())
