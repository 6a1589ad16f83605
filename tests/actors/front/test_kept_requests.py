"""Requests that are kept for longer than others: what a stored response is made of."""

from __future__ import annotations

import asyncio

import pytest

from lightllm_mp.actors.front.image_files import Upload
from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.errors import NotFound
from lightllm_mp.messages import ImageInfo
from tests.actors.front.front_lanes import collect
from tests.actors.front.front_memory import KEY, OTHER, Images, memory, produce, run, submit, words

__all__ = ["memory"]

IMAGE = Upload(ImageInfo(b"i" * 32, 4, 4, 2), b"file" * 100)


def finished(table: ResumableTable, label: str, **options) -> LiveRequest:
    live = submit(table, label, **options)
    produce(table, live, 1, 3, finish=True)
    live.close()
    return live


def test_a_request_has_its_own_window(memory):
    async def body():
        table, _ = memory.front(window=0.1)
        finished(table, "short")
        finished(table, "long", keep=60.0)
        await asyncio.sleep(0.4)
        with pytest.raises(NotFound):
            table.look(KEY, "short")
        assert table.look(KEY, "long").answers[0].text == "<1><2><3>"
        with pytest.raises(NotFound):
            table.look(OTHER, "long")
        table, _ = memory.front(window=0.1)
        await asyncio.sleep(0.4)
        assert table.look(KEY, "long").answers[0].text == "<1><2><3>"
        table.discard(KEY, "long")
        assert table.journal.used == 0

    run(body)


def test_its_window_may_end(memory):
    async def body():
        table, _ = memory.front(window=0)
        finished(table, "kept", keep=0.1)
        assert table.look(KEY, "kept")
        await asyncio.sleep(0.4)
        with pytest.raises(NotFound):
            table.look(KEY, "kept")
        assert (table.journal.used, len(table.retained)) == (0, 0)

    run(body)


def test_a_look_leaves_the_consumer_where_it_is(memory):
    async def body():
        table, _ = memory.front()
        live = submit(table)
        produce(table, live, 1, 2)
        assert words(await live.batch()) == "<1><2>"
        assert table.look(KEY, "id") is live
        produce(table, live, 3, 4, finish=True)
        assert words(await collect(live)) == "<3><4>"

    run(body)


def test_images_are_kept_with_it(memory):
    async def body():
        lane = Images()
        table, _ = memory.front(images=lane)
        finished(table, "short", images=(IMAGE,))
        assert lane.held == []
        finished(table, "long", images=(IMAGE,), keep=60.0)
        assert lane.held == [IMAGE.key]
        lane = Images()
        table, _ = memory.front(images=lane)
        assert lane.held == [IMAGE.key]
        assert table.look(KEY, "long").images[0].data == IMAGE.data
        table.discard(KEY, "long")
        assert (lane.held, len(table.retained)) == ([], 1)

    run(body)


def test_beyond_a_number_of_bytes_the_oldest_of_the_largest_tenant_goes(memory):
    async def body():
        table, _ = memory.front(retained_bytes=5 * 4200)
        finished(table, "other", tenant=OTHER, keep=60.0)
        for number in range(8):
            finished(table, f"{number}", keep=60.0)
        assert table.look(OTHER, "other")
        kept = [number for number in range(8) if (KEY, f"{number}") in table.retained._named]
        assert kept == [4, 5, 6, 7]

    run(body)
