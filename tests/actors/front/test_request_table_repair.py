"""A repair of the engine as its front sees it: nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
from array import array
from time import monotonic
from typing import Any

import pytest

from lightllm_mp import messages as say
from lightllm_mp.actors.front import quarantine
from lightllm_mp.errors import DeadlineExceeded, EngineError, InvalidRequest
from lightllm_mp.messages import LENGTH, RUNNING, STOP, Sampling
from tests.actors.front.front_lanes import FACTS, collect, make, submit, texts


def test_resumed_with_what_was_passed_on():
    async def body():
        frontend, lanes = make()
        live = submit(frontend, n=3, sampling=Sampling(seed=7, prompt_logprobs=1))
        frontend.deliver(say.PromptLogprobs(live.rid, b"", b"", 0))
        frontend.deliver(texts((live.rid, 1, "a", 1, RUNNING), (live.rid + 1, 2, "b", 1, STOP)))
        frontend.reset()
        lanes.tokenizer.clear()
        frontend.begin(say.Begin(epoch=1, facts=FACTS))
        again = lanes.tokenizer
        assert [(m.rid, m.terms.n, m.terms.sampling.seed, m.emitted) for m in again] == [
            (live.rid, 1, 7, array("i", [1]).tobytes()),
            (live.rid + 2, 1, 9, b""),
        ]
        assert again[0].terms.sampling.prompt_logprobs == -1  # they are here already
        assert again[0].text == "hello"
        frontend.deliver(texts((live.rid, 1, "a", 1, RUNNING)))  # said before: not passed on twice
        frontend.deliver(texts((live.rid, 4, "d", 2, STOP), (live.rid + 2, 5, "e", 1, STOP)))
        assert [(e.index, e.text) for e in await collect(live)] == [(0, "a"), (1, "b"), (0, "d"), (2, "e")]

    asyncio.run(body())


def test_an_end_without_a_further_token():
    async def body():
        frontend, _ = make()
        live = submit(frontend)
        frontend.deliver(texts((live.rid, 1, "a", 1, RUNNING)))
        frontend.deliver(texts((live.rid, 1, "", 1, LENGTH)))
        assert [(e.id, e.finish) for e in await collect(live)] == [(1, None), (-1, "length")]
        assert list(live.answers[0].ids) == [1]

    asyncio.run(body())


def test_accepted_and_held_during_a_repair():
    async def body():
        frontend, lanes = make()
        frontend.reset()
        assert frontend.trouble == "repairing"
        live = submit(frontend)
        gone = submit(frontend)
        gone.close()
        counting = asyncio.create_task(frontend.count("a b"))
        await asyncio.sleep(0)
        assert lanes.tokenizer == lanes.router == []
        frontend.begin(say.Begin(epoch=1, facts=FACTS))
        assert [type(m) for m in lanes.tokenizer] == [say.Generate, say.Count]
        assert lanes.tokenizer[0].rid == live.rid
        frontend.deliver(say.Counted(lanes.tokenizer[1].rid, 2))
        assert await counting == 2

    asyncio.run(body())


def test_count_is_asked_again_and_may_be_rejected():
    async def body():
        frontend, lanes = make()
        counting = asyncio.create_task(frontend.count("a b", add_special_tokens=False))
        await asyncio.sleep(0)
        frontend.reset()
        frontend.begin(say.Begin(epoch=1, facts=FACTS))
        first, second = lanes.tokenizer
        assert first == second
        assert not first.add_special_tokens
        frontend.deliver(say.Rejected(first.rid, say.ErrorInfo(400, "no", "invalid_request_error", "invalid_request")))
        with pytest.raises(InvalidRequest, match="no"):
            await counting
        assert frontend.live == 0

    asyncio.run(body())


def test_a_request_that_breaks_the_engine_again_and_again_is_given_up():
    async def body():
        frontend, lanes = make()
        poison, healthy = submit(frontend), submit(frontend)
        for epoch in range(1, 4):
            frontend.deliver(texts((healthy.rid, epoch, "a", epoch, RUNNING)))
            again(frontend, lanes, "worker0")
        assert [(type(m), m.rid) for m in lanes.tokenizer] == [(say.Abort, poison.rid), (say.Generate, healthy.rid)]
        with pytest.raises(EngineError, match="repeatedly"):
            await anext(poison)

    asyncio.run(body())


def test_suspects_go_on_one_at_a_time_and_only_the_cause_is_given_up():
    async def body():
        frontend, lanes = make()
        first, poison, last = (submit(frontend) for _ in range(3))
        for _ in range(2):
            again(frontend, lanes, "worker0")
        assert [m.rid for m in lanes.tokenizer] == [first.rid]
        lanes.tokenizer.clear()
        frontend.deliver(texts((first.rid, 1, "a", 1, RUNNING)))
        assert [m.rid for m in lanes.tokenizer] == [poison.rid]
        again(frontend, lanes, "worker0")
        assert [(type(m), m.rid) for m in lanes.tokenizer] == [
            (say.Generate, first.rid),
            (say.Abort, poison.rid),
            (say.Generate, last.rid),
        ]
        with pytest.raises(EngineError, match="repeatedly"):
            await anext(poison)
        assert first.error is last.error is None

    asyncio.run(body())


def test_a_text_to_count_may_be_the_cause():
    async def body():
        frontend, lanes = make()
        live = submit(frontend)
        poison, healthy = (asyncio.create_task(frontend.count(text)) for text in ("poison", "healthy"))
        await asyncio.sleep(0)
        for _ in range(2):
            again(frontend, lanes, "tokenizer")
        assert [m.rid for m in lanes.tokenizer] == [live.rid]
        lanes.tokenizer.clear()
        frontend.deliver(texts((live.rid, 1, "a", 1, RUNNING)))
        assert [m.text for m in lanes.tokenizer] == ["poison"]
        again(frontend, lanes, "tokenizer")
        with pytest.raises(EngineError, match="repeatedly"):
            await poison
        counting = next(m for m in lanes.tokenizer if isinstance(m, say.Count))
        assert counting.text == "healthy"
        frontend.deliver(say.Counted(counting.rid, 3))
        assert await healthy == 3
        assert frontend.live == 1

    asyncio.run(body())


def test_a_count_has_a_deadline():
    async def body():
        frontend, _ = make()
        with pytest.raises(DeadlineExceeded, match="did not answer"):
            await frontend.count("a b", deadline=monotonic() + 0.05)
        assert frontend.live == 0

    asyncio.run(body())


def test_a_suspect_that_ends_makes_room_for_the_next():
    async def body():
        frontend, lanes = make()
        first, second, third = (submit(frontend) for _ in range(3))
        for _ in range(2):
            again(frontend, lanes, "router")
        lanes.tokenizer.clear()
        second.close()  # while it is held back
        first.close()
        assert [m.rid for m in lanes.tokenizer if isinstance(m, say.Generate)] == [third.rid]

    asyncio.run(body())


def test_deaths_of_different_processes_are_nobodys_fault():
    async def body():
        frontend, lanes = make()
        lives = [submit(frontend) for _ in range(2)]
        for name in ("worker0", "router", "worker0", "detokenizer", "tokenizer", "worker0"):
            again(frontend, lanes, name)
            assert [m.rid for m in lanes.tokenizer] == [live.rid for live in lives]

    asyncio.run(body())


def test_who_came_during_a_repair_is_not_suspected():
    async def body():
        frontend, lanes = make()
        for _ in range(4):
            frontend.reset()
            live = submit(frontend)
            lanes.tokenizer.clear()
            frontend.begin(say.Begin(epoch=1, facts=FACTS, restarted=("worker0",)))
            assert live.fruitless == 0
            live.close()

    asyncio.run(body())


def again(frontend, lanes, name, epoch=1):
    """A repair after the death of one process."""
    frontend.reset()
    lanes.tokenizer.clear()
    frontend.begin(say.Begin(epoch=epoch, facts=FACTS, restarted=(name,)))


# --- whom a death is charged to ---------------------------------------------------------------------------------------


def blaming() -> tuple[Any, Any, list[tuple[str, int]]]:
    """A front, its lanes, and the deaths that a request may be to blame for."""
    frontend, lanes = make()
    blamed: list[tuple[str, int]] = []
    frontend.on_blame = lambda name, epoch: blamed.append((name, epoch))
    return frontend, lanes, blamed


def test_all_deaths_of_a_suspect_are_its_own():
    async def body():
        frontend, lanes, blamed = blaming()
        poison, other = submit(frontend), submit(frontend)
        again(frontend, lanes, "worker0", 2)
        assert blamed == []  # once is nobody's fault
        again(frontend, lanes, "worker0", 3)
        assert sorted(blamed) == [("worker0", 2), ("worker0", 3)]  # told once, for both suspects
        blamed.clear()
        again(frontend, lanes, "worker0", 4)
        assert ("worker0", 4) in blamed
        assert poison.error is not None
        assert other.error is None

    asyncio.run(body())


def test_a_crash_loop_is_nobodys_fault_if_requests_make_progress_or_there_are_none():
    async def body():
        frontend, lanes, blamed = blaming()
        live = submit(frontend)
        for epoch in range(2, 9):
            frontend.deliver(texts((live.rid, epoch, "a", epoch - 1, RUNNING)))
            again(frontend, lanes, "worker0", epoch)
        frontend.deliver(texts((live.rid, 1, "a", 9, STOP)))
        live.close()
        for epoch in range(9, 14):
            again(frontend, lanes, "worker0", epoch)
        assert blamed == []

    asyncio.run(body())


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_request_that_leaves_before_it_is_cleared_takes_the_blame(moment):
    """Else a client that does not wait for the third death could spend the restart budget."""

    async def body():
        frontend, lanes, blamed = blaming()
        poison = submit(frontend)
        if moment == "before":
            poison.close()
        frontend.reset()
        if moment == "during":
            poison.close()
        frontend.begin(say.Begin(epoch=2, facts=FACTS, restarted=("worker0",)))
        assert blamed == ([] if moment == "after" else [("worker0", 2)])
        poison.close()
        assert blamed == [("worker0", 2)]
        again(frontend, lanes, "worker0", 3)  # a moment later
        assert blamed[1:] == ([("worker0", 3)] if moment == "after" else [])
        again(frontend, lanes, "worker0", 4)
        assert ("worker0", 4) not in blamed

    asyncio.run(body())


def test_a_count_whose_client_leaves_takes_the_blame_too():
    async def body():
        frontend, _, blamed = blaming()
        counting = asyncio.create_task(frontend.count("poison"))
        await asyncio.sleep(0)
        frontend.reset()
        counting.cancel()
        await asyncio.wait([counting])
        frontend.begin(say.Begin(epoch=2, facts=FACTS, restarted=("tokenizer",)))
        assert blamed == [("tokenizer", 2)]

    asyncio.run(body())


def test_who_left_with_an_answer_or_long_ago_takes_no_blame(monkeypatch):
    async def body():
        frontend, lanes, blamed = blaming()
        done, begun, old = (submit(frontend) for _ in range(3))
        frontend.deliver(texts((done.rid, 1, "a", 1, STOP), (begun.rid, 1, "a", 1, RUNNING)))
        for live in (done, begun, old):
            live.close()
        now = quarantine.monotonic()
        monkeypatch.setattr(quarantine, "monotonic", lambda: now + quarantine.LEFT_BEFORE)
        again(frontend, lanes, "worker0", 2)
        assert blamed == []

    asyncio.run(body())


def test_text_is_no_suspect_when_the_visual_actor_dies():
    async def body():
        frontend, lanes, blamed = blaming()
        live = submit(frontend)
        for epoch in range(2, 8):
            again(frontend, lanes, "visual", epoch)
            assert [m.rid for m in lanes.tokenizer] == [live.rid]
        live.close()
        again(frontend, lanes, "visual", 8)
        assert (live.error, blamed) == (None, [])

    asyncio.run(body())


def test_only_constrained_requests_are_suspects_when_the_guide_actor_dies():
    async def body():
        frontend, lanes, blamed = blaming()
        free, guided = submit(frontend), submit(frontend, guide=say.Guide("regex", "a"))
        for epoch in (2, 3, 4):
            again(frontend, lanes, "guide", epoch)
        assert free.error is None
        assert guided.error is not None
        assert set(blamed) == {("guide", 2), ("guide", 3), ("guide", 4)}

    asyncio.run(body())


def test_the_time_in_the_queue_ends_when_the_router_says_so():
    async def body():
        frontend, _ = make()
        live = submit(frontend)
        assert live.scheduled == 0.0
        frontend.deliver(say.Scheduled(live.rid))
        first = live.scheduled
        assert first >= live.started
        frontend.deliver(say.Scheduled(live.rid))
        assert live.scheduled == first

    asyncio.run(body())
