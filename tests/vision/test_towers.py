"""Several towers share the pictures, and what breaks one leaves the others alone."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from lightllm_mp.errors import EngineError
from lightllm_mp.vision.preprocess import Preprocessed
from lightllm_mp.vision.tower.encoder_pool import EncoderPool
from lightllm_mp.vision.tower.tower_loader import load_encoder
from tests.vision.test_encoder_batcher import Tower, image
from tests.vision.vision_golden import cases, model, prepared, tensors

Result = float | BaseException


def run(towers: list[Tower], budget: int, images: list[Preprocessed]) -> list[Result]:
    """What each picture became. All are asked for in order while the first batch of every tower is held up."""

    async def main() -> list[Result]:
        several = EncoderPool(towers, budget)  # type: ignore[arg-type]
        found: dict[int, float] = {}

        async def one(index: int) -> float:
            await several.encode(images[index], lambda rows: found.__setitem__(index, rows[0].item()))
            return found[index]

        for tower in towers:
            tower.gate.clear()
        tasks = [asyncio.create_task(one(index)) for index in range(len(images))]
        await asyncio.sleep(0.02)
        for tower in towers:
            tower.gate.set()
        async with asyncio.timeout(5):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert (several.queued, several.images, len(several)) == (0, len(images), len(towers))
        assert several.seconds > 0
        several.close()
        return results

    return asyncio.run(main())


def test_each_picture_goes_where_the_fewest_patches_are() -> None:
    """What is being encoded counts too: a busy tower whose queue is empty is not the free one."""
    towers = [Tower(), Tower(), Tower()]
    sizes = [8, 5, 3, 4, 1, 9]
    assert run(towers, 10, [image(size, index) for index, size in enumerate(sizes)]) == list(map(float, range(6)))
    assert [tower.batches for tower in towers] == [[[8]], [[5], [1, 9]], [[3], [4]]]
    names = [tower.threads for tower in towers]
    assert all(len(found) == 1 for found in names)


def test_every_tower_works_at_the_same_time() -> None:
    """Each waits in the middle of its batch until the others are there too."""
    together = threading.Barrier(3)

    class Meeting(Tower):
        def encode(self, images: list[Preprocessed]) -> list[torch.Tensor]:  # type: ignore[override]
            together.wait(5)
            return super().encode(images)

    assert run([Meeting(), Meeting(), Meeting()], 10, [image(1, value) for value in (1, 2, 3)]) == [1.0, 2.0, 3.0]


def test_a_broken_tower_fails_only_what_it_held() -> None:
    class Broken(Tower):
        def encode(self, images: list[Preprocessed]) -> list[torch.Tensor]:  # type: ignore[override]
            raise RuntimeError("the device is gone")

    good = Tower()
    results = run([good, Broken()], 10, [image(4, index) for index in range(4)])
    assert [result for result in results if isinstance(result, float)] == [0.0, 2.0]
    assert all(isinstance(results[index], EngineError) for index in (1, 3))
    assert sum(map(sum, good.batches)) == 8


def test_full_when_all_are() -> None:
    async def main() -> None:
        pair = [Tower(), Tower()]
        towers = EncoderPool(pair, 10)  # type: ignore[arg-type]
        for tower in pair:
            tower.gate.clear()
        pending = []
        for _ in range(5):
            assert not towers.full
            pending.append(towers.encode(image(10), lambda rows: None))
        pending.append(towers.encode(image(10), lambda rows: None))
        assert towers.full
        assert towers.queued == 6
        for tower in pair:
            tower.gate.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*pending)
        assert not towers.full
        assert towers.batches == 6
        towers.close()

    asyncio.run(main())


def test_all_threads_end() -> None:
    before = set(threading.enumerate())
    run([Tower(), Tower(), Tower()], 10, [image(1, index) for index in range(6)])
    assert not {thread for thread in threading.enumerate() if thread.name.startswith("encoder")} - before


@pytest.mark.parametrize("folder", ["llava_hf", "qwen2_5_vl"])
def test_copies_on_two_devices_agree_with_the_golden(folder: str) -> None:
    devices = [torch.device("cpu"), torch.device("cpu", 0)]
    encoders = [load_encoder(model(folder), device=device, dtype=torch.float32) for device in devices]
    found: dict[str, torch.Tensor] = {}

    async def main() -> None:
        towers = EncoderPool(encoders, 2400)
        done = [towers.encode(prepared(case), lambda rows, key=case.key: found.update({key: rows})) for case in golden]  # type: ignore[misc]
        async with asyncio.timeout(60):
            await asyncio.gather(*done)
        assert all(one.images for one in towers._all)
        towers.close()

    golden = cases(folder)
    asyncio.run(main())
    for case in golden:
        wanted = torch.from_numpy(tensors(folder)[case.key + ".embeds"])
        assert (found[case.key] - wanted).abs().max().item() < 5e-4
