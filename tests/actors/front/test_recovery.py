"""Requests that outlive their front: recovered from the journal."""

from __future__ import annotations

import asyncio
from array import array
from functools import partial

import pytest
from msgspec.structs import replace

from lightllm_mp import messages as say
from lightllm_mp.actors.front.image_files import Upload
from lightllm_mp.errors import EngineError
from lightllm_mp.facts import PooledFacts
from lightllm_mp.messages import LENGTH, RUNNING, ImageInfo, Sampling, Terms
from lightllm_mp.sampling_parameters import POOLED
from tests.actors.front.front_lanes import collect, texts
from tests.actors.front.front_memory import KEY, Images, memory, produce, run, submit, words

__all__ = ["memory"]


@pytest.mark.parametrize("stream", [True, False])
def test_the_next_front_goes_on_with_every_request(memory, stream):
    async def body():
        table, _ = memory.front()
        live = submit(table, n=3, stream=stream)
        rows = [(live.rid + i, 10 * i + c, f"<{i}{c}>", c, RUNNING) for c in range(1, 40) for i in range(3)]
        for row in rows:
            table.deliver(texts(row))
        table.deliver(texts((live.rid + 1, 77, "<end>", 40, LENGTH)))
        seen = await live.batch() if stream else []

        table, lanes = memory.front()
        assert table.live == 1
        sent = [message for message in lanes.tokenizer if isinstance(message, say.Generate)]
        known = 39 if stream else 37
        assert [(m.rid - live.rid, m.terms.sampling.seed) for m in sent if m.terms.n == 1][-1] == (2, 9)
        assert all(len(message.emitted) >= known * 4 - 16 * 4 for message in sent)
        again = table.resume(KEY, "id", len(seen) // 2)
        assert (again.form, again.stream) == (b"form", stream)
        for answer in again.answers:
            if answer.finish is None:
                for count in range(len(answer.ids) + 1, 42):
                    end = LENGTH if count == 41 else RUNNING
                    i = answer.index
                    table.deliver(texts((answer.rid, 10 * i + count, f"<{i}{count}>", count, end)))
        whole = ["".join(f"<{i}{c}>" for c in range(1, 42)) for i in range(3)]
        whole[1] = "".join(f"<1{c}>" for c in range(1, 40)) + "<end>"
        assert [answer.text for answer in await again.answer()] == whole
        if stream:
            rest = await collect(again)
            assert [e.text for e in seen[: len(seen) // 2] + rest if e.index == 1] == [
                e.text for e in again.answers[1].events()
            ]
        again.close()

    run(body)


def test_times_outlive_the_front(memory):
    async def body():
        table, _ = memory.front()
        live = submit(table)
        table.deliver(say.Scheduled(live.rid))
        await asyncio.sleep(0.01)
        produce(table, live, 1, 2)
        await live.batch()
        times = live.started, live.scheduled, live.first
        assert times == tuple(sorted(set(times)))

        table, _ = memory.front()
        again = table.resume(KEY, "id", 0)
        assert (again.started, again.scheduled, again.first) == times
        again.close()

    run(body)


def test_what_was_aborted_stays_so_and_what_was_finished_too(memory):
    async def body():
        table, _ = memory.front()
        done, left = submit(table, "done"), submit(table, "left")
        produce(table, done, 1, 2, finish=True)
        await collect(done)
        done.close()
        produce(table, left, 1, 2)
        left.close()  # with two events that its client has not seen

        table, lanes = memory.front()
        assert (table.live, len(table.retained), lanes.tokenizer) == (0, 2, [])
        assert words(await collect(table.resume(KEY, "done", 1))) == "<2>"
        again = table.resume(KEY, "left", 0)
        assert len(lanes.tokenizer) == 1
        assert len(lanes.tokenizer[0].emitted) == 8
        again.close()

        table, lanes = memory.front()
        assert lanes.tokenizer == []
        table.resume(KEY, "left", 2)

        table, lanes = memory.front()
        assert len(lanes.tokenizer) == 1

    run(body)


def test_nobody_comes_back_and_everything_is_given_back(memory):
    async def body():
        table, _ = memory.front()
        live = submit(table)
        produce(table, live, 1, 2)
        await live.batch()
        table, lanes = memory.front(window=0.1)
        assert table.live == 1
        await asyncio.sleep(0.4)
        assert (table.live, table.journal.used) == (0, 0)
        assert say.Abort(live.rid) in lanes.router

    run(body)


def test_a_request_that_kills_every_front_is_given_up(memory):
    async def body():
        table, _ = memory.front()
        submit(table)
        for _ in range(2):
            table, lanes = memory.front()
            assert len(lanes.tokenizer) == 1
        table, lanes = memory.front()
        assert not any(isinstance(message, say.Generate) for message in lanes.tokenizer)
        with pytest.raises(EngineError, match="repeatedly"):
            await table.resume(KEY, "id").batch()

    run(body)


def test_a_request_is_to_blame_for_the_fronts_that_died_with_it(memory):
    async def body():
        memory.front(epoch=1)
        table, _ = memory.front(epoch=4)  # this death was before the request
        submit(table)
        innocent = submit(table, "innocent")
        memory.front(epoch=5)
        assert memory.blamed == []
        table, lanes = memory.front(epoch=7)
        assert sorted(memory.blamed) == [("http", 5), ("http", 7)]
        assert len(lanes.tokenizer) == 1, "suspects run one at a time"
        table.resume(KEY, "id").close()
        innocent = table.resume(KEY, "innocent")
        produce(table, innocent, 1, 2)
        await innocent.batch()
        memory.blamed.clear()
        table, lanes = memory.front(epoch=9)
        assert memory.blamed == []
        assert len(lanes.tokenizer) == 1

    run(body)


def test_a_request_that_is_given_up_is_to_blame_for_all_deaths(memory):
    async def body():
        table, _ = memory.front(epoch=1)
        submit(table)
        for epoch in (2, 3, 4):
            table, _ = memory.front(epoch=epoch)
        assert {*memory.blamed} == {("http", 2), ("http", 3), ("http", 4)}
        with pytest.raises(EngineError, match="repeatedly"):
            await table.resume(KEY, "id").batch()

    run(body)


def test_a_request_that_gets_tokens_between_deaths_goes_on(memory):
    async def body():
        table, _ = memory.front()
        live = submit(table)
        for count in range(1, 8):
            produce(table, live, count, count)
            await live.batch()
            table, lanes = memory.front()
            assert len(lanes.tokenizer) == 1
            live = table.resume(KEY, "id", count)

    run(body)


def test_a_full_journal_drops_what_is_retained_and_then_does_without(memory):
    async def body():
        table, _ = memory.front()
        for number in range(3):
            submit(table, f"old {number}").close()
        fill = partial(table.submit, terms=Terms(Sampling(seed=1), tenant=KEY), label="big")
        lives = [fill("x" * 90, form=bytes(258_000)) for _ in range(4)]
        assert len(table.retained) == 0
        assert table.journal.incomplete == 0
        lives.append(fill("x" * 90, form=bytes(258_000)))
        assert table.journal.incomplete == 1
        assert lives[-1].number is None
        produce(table, lives[-1], 1, 2, finish=True)
        assert words(await collect(lives[-1])) == "<1><2>"
        for live in lives:
            live.close()

    run(body)


def test_images_survive_the_front_too(memory):
    async def body():
        image = Upload(ImageInfo(b"i" * 32, 4, 4, 2), b"file" * 10_000)
        table, _ = memory.front(images=Images())
        lives = [submit(table, f"{n}", images=(image,)) for n in range(2)]
        assert table.journal.used < 2 * len(image.data)  # one copy for both
        lane = Images()
        table, _ = memory.front(images=lane)
        assert [rid for rid, _ in lane.pushed] == [live.rid for live in lives]
        found = [table.resume(KEY, f"{n}") for n in range(2)]
        assert [live.images[0].data for live in found] == [image.data] * 2
        assert [live.rid for live in found] == [live.rid for live in lives]
        for live in found:
            live.close()
        while table.retained.evict():
            pass
        assert table.journal.used == 0

    run(body)


def test_a_recovered_answer_that_is_complete_holds_no_images(memory):
    async def body():
        image = Upload(ImageInfo(b"i" * 32, 4, 4, 2), b"file" * 100)
        table, _ = memory.front(images=Images())
        live = submit(table, images=(image,), stream=False)
        produce(table, live, 1, 3, finish=True)
        lane = Images()
        table, _ = memory.front(images=lane)
        assert lane.held == []
        again = table.resume(KEY, "id")
        assert (await again.answer())[0].text == "<1><2><3>"
        again.close()

    run(body)


@pytest.mark.parametrize("answered", [True, False])
def test_a_row_of_numbers_is_computed_again(memory, answered):
    """Whether or not its client was about to get it: rows are not in the journal, they follow from the prompt."""

    async def body():
        table, _ = memory.front()
        assert table.facts is not None
        pooled = PooledFacts("score", 1, pairs=True)
        table.facts = replace(table.facts, engine=replace(table.facts.engine, pooled=pooled))
        pair, terms = say.TextPair("query", "document"), Terms(POOLED, tenant=KEY, task="score")
        live = table.submit(pair, terms, stream=False, label="id", form=b"form")
        row = array("f", [1.5]).tobytes()
        if answered:
            table.deliver(say.Pooled(live.rid, row, 7))

        table, lanes = memory.front()
        (sent,) = lanes.tokenizer
        assert (sent.pair, sent.terms.task, sent.rid) == (pair, "score", live.rid)
        again = table.resume(KEY, "id")
        table.deliver(say.Pooled(again.rid, row, 7))
        (answer,) = await again.answer()
        assert (answer.score, answer.prompt_tokens, answer.finish, again.form) == (1.5, 7, "stop", b"form")
        again.close()
        assert table.live == 0

    run(body)
