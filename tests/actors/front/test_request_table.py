"""The record of live requests: delivery, resumption, refusal, aborts, drain. The engine is played by hand."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tracemalloc
from array import array

import pytest
from msgspec import structs

from lightllm_mp import messages as say
from lightllm_mp.actors.front import live_request as live_module
from lightllm_mp.actors.front.request_limits import DRAIN_WINDOW, DrainRate, RequestLimits
from lightllm_mp.actors.front.request_table import RequestTable, SlowReader
from lightllm_mp.actors.front.validation import CHAT_BYTES
from lightllm_mp.errors import EngineError, InvalidRequest, Overloaded, PromptTooLong, Unavailable
from lightllm_mp.messages import LENGTH, RUNNING, STOP, Sampling
from tests.actors.front.front_lanes import FACTS, Lanes, collect, make, submit, texts


def test_events_in_order_until_all_have_finished():
    async def body():
        frontend, lanes = make()
        live = submit(frontend, n=2)
        assert lanes.tokenizer == [live.request]
        frontend.deliver(texts((live.rid, 1, "a", 1, RUNNING), (live.rid + 1, 2, "b", 1, STOP)))
        frontend.deliver(texts((live.rid, 3, "c", 2, LENGTH)))
        events = await collect(live)
        assert [(e.index, e.id, e.text, e.count, e.finish) for e in events] == [
            (0, 1, "a", 1, None),
            (1, 2, "b", 1, "stop"),
            (0, 3, "c", 2, "length"),
        ]
        assert (events[0].prompt_tokens, events[0].cached_tokens) == (5, 2)
        assert frontend.live == 1
        live.close()
        assert frontend.live == 0
        assert lanes.router == []  # nothing to abort

    asyncio.run(body())


def test_whole_answers_are_columns():
    async def body():
        frontend, _ = make()
        live = submit(frontend, n=2, stream=False)
        waiting = asyncio.create_task(live.answer())
        frontend.deliver(texts((live.rid, 1, "a", 1, RUNNING), (live.rid + 1, 2, "b", 1, STOP)))
        await asyncio.sleep(0)
        assert not waiting.done()
        frontend.deliver(texts((live.rid, 3, "c", 2, LENGTH)))
        first, second = await waiting
        assert (first.text, list(first.ids), first.finish) == ("ac", [1, 3], "length")
        assert (second.text, [e.logprob for e in second.events()], second.finish) == ("b", [-1.0], "stop")

    asyncio.run(body())


def test_close_aborts_what_is_unfinished_on_both_lanes_once():
    async def body():
        frontend, lanes = make()
        live = submit(frontend, n=2)
        frontend.deliver(texts((live.rid, 1, "a", 1, STOP)))
        live.close()
        live.abort()
        assert lanes.router == lanes.tokenizer[1:] == [say.Abort(live.rid + 1)]
        frontend.deliver(texts((live.rid + 1, 1, "late", 1, STOP), (12345, 1, "unknown", 1, STOP)))
        frontend.deliver(say.Rejected(live.rid, say.ErrorInfo(400, "late", "x", "x")))
        frontend.deliver(say.Counted(99, 1))
        assert await collect(live) == await live.batch() == []

    asyncio.run(body())


def test_a_consumer_that_waits_is_woken_by_close():
    async def body():
        frontend, _ = make()
        live = submit(frontend)
        waiting = asyncio.create_task(collect(live))
        await asyncio.sleep(0)
        live.close()
        assert await asyncio.wait_for(waiting, 20) == []

    asyncio.run(body())


@pytest.mark.parametrize(
    ("info", "kind"),
    [
        (say.ErrorInfo(400, "long", "invalid_request_error", "prompt_too_long", "inputs"), PromptTooLong),
        (say.ErrorInfo(503, "away", "unavailable_error", "unavailable"), Unavailable),
        (say.ErrorInfo(422, "odd", "other", "other"), EngineError),
    ],
)
def test_rejected_is_raised_typed(info, kind):
    async def body():
        frontend, _ = make()
        live = submit(frontend, n=2)
        frontend.deliver(say.Rejected(live.rid, info))
        with pytest.raises(kind) as caught:
            await collect(live)
        error = caught.value
        assert (error.status, error.message, error.type, error.code, error.param) == (
            info.status,
            info.message,
            info.type,
            info.code,
            info.param,
        )
        live.close()
        assert frontend.live == 0

    asyncio.run(body())


def test_no_more_than_max_live():
    async def body():
        frontend, _ = make(max_live=2)
        first = submit(frontend)
        submit(frontend)
        with pytest.raises(Overloaded) as caught:
            submit(frontend)
        assert 1.0 <= caught.value.retry_after <= 60.0
        with pytest.raises(Overloaded):
            await frontend.count("a")
        first.close()
        submit(frontend)

    asyncio.run(body())


def test_full_lane_refuses_new_work_and_holds_back_the_rest():
    async def body():
        frontend, lanes = make()
        live, other = submit(frontend), submit(frontend)
        lanes.room = False
        live.close()
        with pytest.raises(Overloaded):
            submit(frontend)
        assert frontend.live == 1
        lanes.room = True
        with pytest.raises(Overloaded):  # it may not overtake the abort
            submit(frontend)
        frontend.flush()
        assert lanes.router == lanes.tokenizer[2:] == [say.Abort(live.rid)]
        lanes.room = False
        frontend.begin(say.Begin(epoch=1, facts=FACTS))
        lanes.tokenizer.clear()
        lanes.room = True
        frontend.flush()
        assert [m.rid for m in lanes.tokenizer] == [other.rid]

    asyncio.run(body())


def test_not_begun_and_draining_refuse():
    async def body():
        lanes = Lanes()
        frontend = RequestTable(lanes.to_tokenizer, lanes.to_router, limits=RequestLimits(2))
        done = []
        frontend.on_drained = lambda: done.append(1)
        assert (frontend.ready, frontend.trouble) == (False, "starting")
        with pytest.raises(Unavailable):
            submit(frontend)
        frontend.begin(say.Begin(epoch=0, facts=FACTS))
        assert (frontend.ready, frontend.trouble) == (True, "")
        live = submit(frontend)
        frontend.health(say.Health(ok=False, reason="router is down"))
        submit(frontend).close()  # repairs are waited for
        assert frontend.trouble == "router is down"
        frontend.health(say.Health(ok=True, draining=True))
        with pytest.raises(Unavailable):
            submit(frontend)
        assert not frontend.drained()
        assert not done
        frontend.deliver(texts((live.rid, 1, "a", 1, STOP)))
        assert len(await collect(live)) == 1
        live.close()
        frontend.health(say.Health(ok=True, draining=True))
        assert frontend.drained()
        assert done == [1]

    asyncio.run(body())


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        (array("i", [100]).tobytes(), InvalidRequest),
        (array("i", [-1]).tobytes(), InvalidRequest),
        (b"", InvalidRequest),
        (array("i", [1] * 11).tobytes(), PromptTooLong),
        ("x" * 161, PromptTooLong),
        ("half \ud800", InvalidRequest),
        (say.ChatPrompt(b"x" * (CHAT_BYTES + 641)), PromptTooLong),
        (say.ChatPrompt(b"[]", tools=b"x" * (CHAT_BYTES + 641)), PromptTooLong),
    ],
)
def test_prompts_that_cannot_be_served_are_refused_before_anybody_works(prompt, error):
    async def body():
        frontend, lanes = make()
        with pytest.raises(error):
            submit(frontend, prompt)
        assert (lanes.tokenizer, frontend.live) == ([], 0)

    asyncio.run(body())


def test_ids_outside_the_vocabulary_are_refused():
    async def body():
        frontend, _ = make()
        bad = array("i", [100]).tobytes()
        for sampling in (Sampling(seed=0, stop_ids=bad), Sampling(seed=0, bias_ids=bad, bias_values=bytes(4))):
            with pytest.raises(InvalidRequest):
                submit(frontend, sampling=sampling)
        with pytest.raises(InvalidRequest):
            submit(frontend, n=65)

    asyncio.run(body())


def test_a_consumer_that_is_too_slow_loses_its_request(monkeypatch):
    async def body():
        monkeypatch.setattr(live_module, "QUEUE_BYTES", 300)
        frontend, lanes = make()
        live, whole = submit(frontend), submit(frontend, stream=False)
        cut = []
        live.on_overflow = lambda: cut.append(1)
        for count in range(1, 20):
            frontend.deliver(texts((live.rid, 1, "a", count, RUNNING), (whole.rid, 1, "a", count, RUNNING)))
        assert cut == [1]
        assert lanes.router == [say.Abort(live.rid)]
        with pytest.raises(SlowReader):
            await collect(live)
        assert len(whole.answers[0].ids) == 19

    asyncio.run(body())


def test_what_a_slow_consumer_leaves_unread_is_bounded_with_all_its_alternatives():
    """20 a token: everything that is kept counts, not the texts alone."""

    async def body():
        frontend, _ = make()
        live = submit(frontend)
        best = (0, bytes(80), bytes(80))
        tracemalloc.start()
        try:
            for count in range(1, 1 << 14):
                step = texts((live.rid, 1, "a", count, RUNNING))
                frontend.deliver(structs.replace(step, top=(best,), top_texts=(tuple("b" * 20),)))
                if live.error is not None:
                    break
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert isinstance(live.error, SlowReader)
        assert 1000 < count < 1 << 13
        assert held < 2 * live_module.QUEUE_BYTES

    asyncio.run(body())


def test_rids_are_never_used_twice():
    async def body():
        frontend, _ = make(max_live=100)
        lives = [submit(frontend, n=3) for _ in range(10)]
        rids = [answer.rid for live in lives for answer in live.answers]
        assert len(set(rids)) == 30
        assert all(0 < rid < 2**63 for rid in rids)
        others = {submit(make()[0]).rid for _ in range(8)}
        assert len(others) == 8  # a new front begins elsewhere

    asyncio.run(body())


def test_drain_rate_follows_the_finished_requests():
    rate = DrainRate(0.0)
    assert rate.value(5.0) == 0.0
    for i in range(1, 601):
        rate.finished(i * 0.1)
    assert rate.value(60.0) == pytest.approx(10.0, rel=0.05)
    assert rate.value(60.0 + 5 * DRAIN_WINDOW) < 0.1


def test_retry_after_is_the_queue_over_the_rate():
    async def body():
        frontend, _ = make(max_live=50)
        lives = [submit(frontend) for _ in range(20)]
        assert frontend.limits.retry_after() == 5.0  # nothing has finished yet
        for live in lives[:10]:
            frontend.deliver(texts((live.rid, 1, "a", 1, STOP)))
            live.close()
        assert 1.0 <= frontend.limits.retry_after() < 5.0

    asyncio.run(body())


def test_alternatives_with_and_without_a_tokenizer():
    async def body():
        frontend, _ = make()
        live = submit(frontend)
        top = ((0, array("i", [3, 4]).tobytes(), array("f", [-1.0, -2.0]).tobytes()),)
        for count, words in enumerate((("c", "d"), ()), 1):
            message = texts((live.rid, 3, "c", count, RUNNING))
            frontend.deliver(structs.replace(message, top=top, top_texts=(words,)))
        first, second = await live.batch()
        assert [(a.id, a.logprob, a.text) for a in first.top] == [(3, -1.0, "c"), (4, -2.0, "d")]
        assert [(a.id, a.text) for a in second.top] == [(3, ""), (4, "")]

    asyncio.run(body())


def test_the_front_loads_no_model_library():
    """torch and transformers take seconds and gigabytes; a front needs neither."""
    code = (
        "import sys; import lightllm_mp.actors.http.app, lightllm_mp.actors.http.sockets.listener; "
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'jinja2', 'multiprocessing') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
