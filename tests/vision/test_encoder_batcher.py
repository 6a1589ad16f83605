"""Pictures are encoded in batches, in order, in a thread, and one that cannot be encoded takes no other with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from lightllm_mp.errors import EngineError
from lightllm_mp.vision.preprocess import Preprocessed
from lightllm_mp.vision.sizing import PatchGrid
from lightllm_mp.vision.tower.encoder_batcher import HOPELESS, EncoderBatcher


def image(patches: int, value: float = 0.0) -> Preprocessed:
    return Preprocessed(np.full(3, value, np.float32), PatchGrid(1, 1, patches))


class Tower:
    """Gives each picture's value back; a negative one breaks the batch, and `most` patches are all that fit."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.most = most
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def encode(self, images: Sequence[Preprocessed]) -> list[torch.Tensor]:
        assert self.gate.wait(5)
        self.threads.add(threading.current_thread().name)
        self.batches.append([one.grid.patches for one in images])
        if sum(self.batches[-1]) > self.most:
            raise torch.OutOfMemoryError("too much")
        if any(one.pixels[0] < 0 for one in images):
            raise ValueError("a bad picture")
        return [torch.from_numpy(one.pixels) for one in images]


def run(tower: Tower, budget: int, images: list[Preprocessed]) -> list[float | BaseException]:
    """What each picture became. All are asked for while the first batch is held up."""

    async def main() -> list[float | BaseException]:
        batches = EncoderBatcher(tower, budget)  # type: ignore[arg-type]
        found: dict[int, float] = {}

        async def one(index: int) -> float:
            await batches.encode(images[index], lambda rows: found.__setitem__(index, rows[0].item()))
            return found[index]

        tower.gate.clear()
        tasks = [asyncio.create_task(one(index)) for index in range(len(images))]
        await asyncio.sleep(0.02)
        tower.gate.set()
        async with asyncio.timeout(5):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        batches.close()
        return results

    return asyncio.run(main())


def test_as_many_as_the_budget_allows_in_order() -> None:
    tower = Tower()
    sizes = [3, 4, 4, 2, 50, 1, 9]
    assert run(tower, 10, [image(size, index) for index, size in enumerate(sizes)]) == list(map(float, range(7)))
    assert tower.batches == [[3], [4, 4, 2], [50], [1, 9]]
    assert all(name.startswith("encoder") for name in tower.threads)


def test_a_bad_picture_fails_alone() -> None:
    results = run(Tower(), 100, [image(1, 0), *(image(1, value) for value in (1, 2, -1, 4, 5))])
    assert [result for result in results if not isinstance(result, EngineError)] == [0.0, 1.0, 2.0, 4.0, 5.0]
    assert isinstance(results[3], EngineError)


def test_a_batch_that_does_not_fit_memory_is_cut() -> None:
    tower = Tower(most=4)
    results = run(tower, 100, [image(1, 0), image(3, 1), image(3, 2), image(5, 3), image(1, 4)])
    assert [result for result in results if isinstance(result, float)] == [0.0, 1.0, 2.0, 4.0]
    assert "memory" in str(results[3])


def test_a_tower_that_only_fails_is_given_up() -> None:
    async def main() -> None:
        batches = EncoderBatcher(Tower(), 10)  # type: ignore[arg-type]
        for _ in range(HOPELESS - 1):
            with pytest.raises(EngineError):
                await batches.encode(image(1, -1), lambda rows: None)
        with pytest.raises(RuntimeError, match="in a row"):
            await batches.encode(image(1, -1), lambda rows: None)
        batches.close()

    asyncio.run(main())
