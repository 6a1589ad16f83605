"""What is said of the image cache: bounded, the newest first, and nothing that shows an image."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec

from lightllm_mp.actors.topology import HTTP, VISUAL, ImageArenas, topology
from lightllm_mp.actors.visual.cache_state import image_cache_state
from lightllm_mp.messages import MOST_SHOWN, ImageCacheState, Inspect, Wire
from lightllm_mp.shm import Arena
from lightllm_mp.vision.cache import ImageCache, WantedImage
from tests.actors.embedded import in_time
from tests.actors.visual.seeing import png, seeing


def test_two_thousand_images() -> None:
    arena = Arena.create(1 << 28)
    cache = ImageCache(2000, arena)
    for number in range(2000):
        key = number.to_bytes(32, "big")[::-1]
        assert cache.ask(number, [WantedImage(key, 4, 1024)])
        assert len(cache.grant()) == 1
        if number < 1990:
            cache.ready(key)
        if number % 2:
            cache.release(number)
    begin = time.process_time()
    state = image_cache_state(cache, arena, 10, time.monotonic())
    assert time.process_time() - begin < 0.05
    assert (state.items, state.capacity, state.leased, state.working) == (2000, 2000, 1000, 10)
    assert len(state.images) == MOST_SHOWN
    assert [int.from_bytes(image.key, "little") for image in state.images[:2]] == [1999, 1998]
    assert [image.ready for image in state.images[8:12]] == [False, False, True, True]
    assert all(0 <= image.age < 60 and len(image.key) == 4 for image in state.images)
    plan = topology(images=ImageArenas(cache=1 << 16, files=1 << 16))
    (edge,) = (edge for edge in plan.edges if (edge.first, edge.second) == (HTTP, VISUAL))
    assert len(msgspec.msgpack.encode(state)) < edge.backward // 8
    arena.close()


@in_time
async def test_the_visual_actor_answers(tmp_path: Path) -> None:
    async with seeing(tmp_path) as s:
        said = asyncio.get_running_loop().create_future()
        front, usual = s.engine.front, s.engine.front.on_message

        def on_message(peer: str, message: Wire) -> None:
            if isinstance(message, ImageCacheState):
                said.set_result((peer, message))
            usual(peer, message)

        front.on_message = on_message  # type: ignore[method-assign]
        await s.ask([png(1)])
        await s.clean()
        assert front.mailbox.send(VISUAL, Inspect())
        peer, state = await said
        assert (peer, state.items, state.leased) == (VISUAL, 1, 0)
        assert (state.images[0].ready, state.images[0].leases) == (True, 0)
