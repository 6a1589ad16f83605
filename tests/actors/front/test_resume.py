"""Requests that outlive their consumer: resumed by their client."""

from __future__ import annotations

import asyncio

import pytest

from lightllm_mp import messages as say
from lightllm_mp.actors.front.request_limits import RequestLimits
from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.errors import EngineError, InvalidRequest, NotFound, Overloaded
from tests.actors.front.front_lanes import FACTS, Lanes, collect
from tests.actors.front.front_memory import KEY, OTHER, memory, produce, run, submit, words

__all__ = ["memory"]


def test_a_broken_stream_is_aborted_and_goes_on_when_its_client_is_back(memory):
    async def body():
        table, lanes = memory.front()
        live = submit(table)
        produce(table, live, 1, 5)
        assert words(await live.batch()) == "<1><2><3><4><5>"
        live.close()
        assert lanes.router == [say.Abort(live.rid)]
        assert table.live == 0
        again = table.resume(KEY, "id", 3)
        sent = lanes.tokenizer[-1]
        assert isinstance(sent, say.Generate)
        assert len(sent.emitted) == 5 * 4
        assert sent.rid == again.rid != live.rid
        assert words(await again.batch()) == "<4><5>"
        produce(table, again, 6, 7, finish=True)
        assert words(await collect(again)) == "<6><7>"
        again.close()
        assert table.live == 0
        assert len(table.retained) == 1

    run(body)


def test_a_finished_answer_can_be_read_again_until_the_window_is_over(memory):
    async def body():
        table, _ = memory.front(window=0.2)
        live = submit(table, stream=False)
        produce(table, live, 1, 3, finish=True)
        assert (await live.answer())[0].text == "<1><2><3>"
        live.close()
        again = table.resume(KEY, "id")
        assert (await again.answer())[0].text == "<1><2><3>"
        again.close()
        await asyncio.sleep(0.5)
        with pytest.raises(NotFound):
            table.resume(KEY, "id")
        assert table.journal.used == 0

    run(body)


def test_only_the_same_key_can_resume(memory):
    async def body():
        table, _ = memory.front()
        live = submit(table)
        for tenant, label in ((OTHER, "id"), (b"", "id"), (KEY, "other")):
            with pytest.raises(NotFound):
                table.resume(tenant, label)
            with pytest.raises(NotFound):
                table.discard(tenant, label)
        mine = submit(table, tenant=OTHER)
        assert table.resume(OTHER, "id").rid == mine.rid
        assert not live.closed

    run(body)


def test_the_newest_of_equal_labels_is_the_one_that_is_resumed(memory):
    async def body():
        table, _ = memory.front()
        first, second = submit(table), submit(table)
        first.close()
        assert table.resume(KEY, "id").rid == second.rid
        assert len(table.retained) == 0

    run(body)


def test_a_new_connection_takes_a_live_request_over(memory):
    async def body():
        table, lanes = memory.front()
        old = submit(table)
        produce(table, old, 1, 2)
        await old.batch()
        waiting = asyncio.create_task(old.batch())
        await asyncio.sleep(0)
        new = table.resume(KEY, "id", 1)
        assert await waiting == []  # the old consumer gets no more
        old.close()
        produce(table, new, 3, 3, finish=True)
        assert words(await collect(new)) == "<2><3>"
        assert lanes.router == []
        assert table.live == 1
        new.close()
        assert table.live == 0

    run(body)


def test_events_that_never_were_are_refused(memory):
    async def body():
        table, _ = memory.front()
        live = submit(table)
        produce(table, live, 1, 2)
        with pytest.raises(InvalidRequest):
            table.resume(KEY, "id", 3)

    run(body)


def test_a_resumed_request_counts_like_a_new_one(memory):
    async def body():
        table, _ = memory.front(max_live=1)
        submit(table, "a").close()
        submit(table, "b")
        with pytest.raises(Overloaded):
            table.resume(KEY, "a")
        assert len(table.retained) == 1  # it can be tried again

    run(body)


def test_discard_keeps_nothing(memory):
    async def body():
        table, lanes = memory.front()
        live, gone = submit(table), submit(table, "gone")
        gone.close()
        table.discard(KEY, "id")
        table.discard(KEY, "gone")
        assert lanes.router.count(say.Abort(live.rid)) == 1
        assert (table.live, len(table.retained), table.journal.used) == (0, 0, 0)

    run(body)


def test_a_failed_request_is_not_kept(memory):
    async def body():
        table, _ = memory.front()
        live = submit(table)
        table.deliver(say.Rejected(live.rid, say.ErrorInfo(400, "bad", "x", "x")))
        with pytest.raises(EngineError):
            await live.batch()
        live.close()
        assert (len(table.retained), table.journal.used) == (0, 0)

    run(body)


def test_answers_that_take_all_memory_fail_the_largest():
    async def body():
        lanes = Lanes()
        table = ResumableTable(lanes.to_tokenizer, lanes.to_router, limits=RequestLimits(8), answer_bytes=4000)
        table.begin(say.Begin(epoch=0, facts=FACTS))
        small, large = submit(table, ""), submit(table, "", stream=False)
        produce(table, small, 1, 10)
        produce(table, large, 1, 200)
        with pytest.raises(Overloaded):
            await large.answer()
        large.close()
        produce(table, small, 11, 12, finish=True)
        assert len(await collect(small)) == 12

    run(body)
