"""Images through real processes, the model apart: one encoding for all, no deadlock, no leak, no loss in a crash."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightllm_mp.actors.runtime.actor_settings import VisualSettings
from lightllm_mp.actors.supervision.state_machine import State
from lightllm_mp.actors.visual.actor import VisualActor
from lightllm_mp.config import ModelConfig
from lightllm_mp.errors import ConfigError, InvalidRequest, Overloaded, PayloadTooLarge
from lightllm_mp.models.model_config import read_model_config
from tests.actors.embedded import Shared, config, in_time, on_shared
from tests.actors.visual.late_visual import MARKS
from tests.actors.visual.seeing import GOLDENS, Seeing, png, seeing, with_images


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared[Seeing]]:
    """A cache of 10 images, which keeps those of the tests before."""
    engine = Shared(lambda: seeing(tmp_path_factory.mktemp("shared")))
    yield engine
    engine.close()


def since(before: dict[str, float], after: dict[str, float], *names: str) -> tuple[float, ...]:
    return tuple(after[name] - before.get(name, 0) for name in names)


@on_shared
async def test_a_hundred_requests_for_one_new_image(s: Seeing) -> None:
    before = s.numbers
    answers = await asyncio.gather(*[s.ask([png(1001)]) for _ in range(100)])
    assert all(answer == answers[0] for answer in answers)
    numbers = await s.clean()
    assert since(before, numbers, "encoded", "misses") == (1, 1)
    assert sum(since(before, numbers, "joins", "hits")) == 99
    # Other images, other answers; the same again from the cache.
    assert await s.ask([png(1002)]) != answers[0] == await s.ask([png(1001)])
    assert since(before, await s.clean(), "encoded") == (2,)


@on_shared
async def test_more_images_than_the_cache_holds(s: Seeing) -> None:
    most = 0.0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, s.numbers.get("items", 0))
            await asyncio.sleep(0.002)

    watching = asyncio.create_task(watch())
    alone = await asyncio.gather(*[s.ask([png(i)]) for i in range(40)])
    assert len(set(map(tuple, alone))) == 40
    groups = [[png(6 * i + j) for j in range(6)] for i in range(8)]
    six = await asyncio.gather(*[s.ask(images) for images in groups])
    assert [len(answer) for answer in six] == [3] * 8
    watching.cancel()
    numbers = await s.clean()
    assert numbers["items"] == most == 10
    assert numbers["bytes"] <= numbers["bytes_total"]
    assert await s.ask(groups[0]) == six[0]
    with pytest.raises(InvalidRequest, match="11 different images, the cache holds 10"):
        s.submit([png(i) for i in range(11)])
    assert len(await s.ask([png(1)] * 11)) == 3


@in_time
async def test_two_towers_and_one_cache(tmp_path: Path) -> None:
    images = [[png(2 * i), png(2 * i + 1)] for i in range(12)]
    async with seeing(tmp_path, visual="tests.actors.visual.two_towers:TwoTowers") as s:
        bad = asyncio.gather(*[s.ask([png(90 + i)[:-200]]) for i in range(4)], return_exceptions=True)
        answers = await asyncio.gather(*[s.ask(pair) for pair in images])
        assert all(isinstance(result, InvalidRequest) for result in await bad)
        numbers = await s.clean()
        assert (numbers["towers"], numbers["encoded"], numbers["answered"]) == (2, 24, 12)
        assert numbers["wait_seconds"] > 0
        assert await asyncio.gather(*[s.ask(pair) for pair in images]) == answers
        await s.clean()


@pytest.mark.parametrize(
    ("gpus", "place", "expected"),
    [
        ((), "auto", ["cuda:0"]),
        ((2, 0), "auto", ["cuda:2", "cuda:0"]),
        ((2, 0), "cpu", ["cpu"]),
        ((0, 3), "auto", "--visual-gpu-ids 3: there is no such GPU"),
        ((-1,), "auto", "--visual-gpu-ids -1: there is no such GPU"),
        ((1, 1), "auto", "names a GPU twice"),
    ],
)
def test_where_towers_are(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[int, ...], place: Any, expected: list[str] | str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    def found() -> list[str]:
        images = with_images(visual_gpu_ids=gpus, visual_device=place).multimodal
        settings = VisualSettings(ModelConfig(), images, threads=0)
        return [str(device) for device in VisualActor.placement(settings, read_model_config(GOLDENS / "llava_hf"))[0]]

    if isinstance(expected, list):
        assert found() == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            found()


@in_time
async def test_bytes_bound_the_cache_too(tmp_path: Path) -> None:
    """Room for 4 images; a request for 5 fits the count and not the bytes."""
    async with seeing(tmp_path, with_images(cache_size_gb=4 * 65536 / 2**30)) as s:
        await asyncio.gather(*[s.ask([png(i), png(i + 1)]) for i in range(12)])
        with pytest.raises(InvalidRequest, match=r"5 different images do not fit the image cache together \(10 images"):
            await s.ask([png(i) for i in range(5)])
        numbers = await s.clean()
        assert (numbers["items"], numbers["refusals"]) == (4, 1)


@on_shared
async def test_bad_images_fail_alone_and_leave_nothing(s: Seeing) -> None:
    good, bad, before = png(1101), png(1102)[:-200], s.numbers

    async def fails() -> str:
        with pytest.raises(InvalidRequest) as caught:
            await s.ask([good, bad])
        return caught.value.message

    messages = await asyncio.gather(*[fails() for _ in range(5)], *[s.ask([good]) for _ in range(5)])
    assert messages[:5] == ["a PNG image is damaged or cut off"] * 5
    assert since(before, await s.clean(), "encoded") == (1,)
    with pytest.raises(InvalidRequest, match="0 places for images"):
        await s.ask([good], tag="")
    await s.clean()


@on_shared
async def test_clients_that_leave_at_any_moment(s: Seeing) -> None:

    async def leave(number: int) -> None:
        live = s.submit([png(number % 15), png(number % 15 + 1)], tokens=50)
        await asyncio.sleep(number % 10 * 0.01)
        live.close()

    for _ in range(3):
        await asyncio.gather(*[leave(number) for number in range(60)])
    assert len(await s.ask([png(99)])) == 3
    await s.clean()


@in_time
async def test_files_wait_for_room_in_shared_memory(tmp_path: Path) -> None:
    """300 KB for each image, and shared memory for five of them; then more than may be live at all."""
    images = [png(i, 400, 250) for i in range(24)]
    sizes = {"max_image_bytes_per_request": 1 << 20, "max_bytes_per_image": 1 << 20, "max_image_bytes_live": 8 << 20}
    async with seeing(tmp_path, with_images(**sizes, max_images_per_request=4)) as s:
        lives = [s.submit(images[i : i + 3]) for i in range(0, 24, 3)]
        assert s.lane.waiting > 0
        assert all(len(ids) == 3 for ids, _ in await asyncio.gather(*map(s.engine.collect, lives)))
        await s.clean()
        lives = [s.submit([image]) for image in images]
        lives += [s.submit([png(number, 400, 250)]) for number in range(24, 27)]
        with pytest.raises(Overloaded):
            s.submit([png(27, 400, 250)])
        assert s.lane.files.size <= 8 << 20
        with pytest.raises(PayloadTooLarge, match="the request's images have"):
            s.submit(images[:4])
        await asyncio.gather(*map(s.engine.collect, lives))
        await s.clean()


def decoders(visual: int) -> list[int]:
    children = Path(f"/proc/{visual}/task/{visual}/children").read_text().split()
    return [int(pid) for pid in children]


@in_time
async def test_a_decoder_that_dies_or_hangs_costs_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with seeing(tmp_path) as s:
        await s.ask([png(0)])
        visual = s.engine.pid("visual")
        for number in range(1, 4):
            for pid in decoders(visual):
                os.kill(pid, signal.SIGKILL)
            results = await asyncio.gather(*[s.ask([png(10 * number + i)]) for i in range(8)], return_exceptions=True)
            assert all(isinstance(result, list | InvalidRequest) for result in results)
            assert len(await s.ask([png(100 + number)])) == 3
        assert s.engine.pid("visual") == visual
        await s.clean()


@on_shared
async def test_a_killed_visual_actor_loses_no_request(s: Seeing) -> None:
    groups = [[png(3 * i + j) for j in range(3)] for i in range(12)]
    undisturbed = await asyncio.gather(*[s.ask(images, 40) for images in groups])
    text_alone = (await s.engine.collect(s.engine.submit("Tell me", 1000)))[0]
    old = s.engine.pid("visual")
    gaps: list[float] = []

    async def stream() -> list[int]:
        live, ids, last = s.engine.submit("Tell me", 1000), [], time.monotonic()
        async for event in live:
            ids.append(event.id)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()
        live.close()
        return ids

    images = asyncio.gather(*[s.ask(images, 40) for images in groups])
    await asyncio.sleep(0.02)
    s.engine.kill("visual")
    streams = 0
    while not images.done():  # without the visual actor, and while it comes back
        assert await stream() == text_alone
        streams += 1
    assert await images == undisturbed
    assert s.engine.pid("visual") != old
    print(f"{streams} streams of text meanwhile, longest gap between two tokens {max(gaps):.3f} s")
    assert streams > 1
    # A repair of text takes no start of a visual actor, which imports torch and reads weights.
    assert max(gaps) < 2.0
    assert (await s.clean())["items"] == 10


@on_shared
async def test_deaths_while_the_visual_actor_comes_back(s: Seeing) -> None:
    text_alone = (await s.engine.collect(s.engine.submit("Tell me", 1000)))[0]
    for number, also in enumerate(("router", "visual", "worker0"), 12):
        groups = [[png(100 * number + 2 * i), png(100 * number + 2 * i + 1)] for i in range(6)]
        undisturbed = await asyncio.gather(*[s.ask(images, 200) for images in groups])
        images = asyncio.gather(*[s.ask(images, 200) for images in groups])
        await asyncio.sleep(0.02)
        s.engine.kill("visual")
        await s.engine.until(State.REPAIRING)
        await s.engine.until(State.RUNNING)
        while not s.engine.front.frontend.ready:  # it hears of it a moment later
            await asyncio.sleep(0.01)
        assert (await s.engine.collect(s.engine.submit("Tell me", 1000)))[0] == text_alone
        s.engine.kill(also)
        assert (await s.engine.collect(s.engine.submit("Tell me", 1000)))[0] == text_alone
        assert await images == undisturbed
        await s.clean()


@on_shared
async def test_a_corrupt_lane_of_the_visual_actor_is_repaired(s: Seeing) -> None:
    for number, way in enumerate((("visual", "router"), ("router", "visual"), ("engine", "visual")), 1500):
        restarts = sum(s.engine.supervisor.restarts.values())
        undisturbed = await s.ask([png(number)], 500)
        asking = asyncio.create_task(s.ask([png(number)], 500))
        await asyncio.sleep(0.02)
        s.engine.supervisor.wiring.lane(*way).poison()
        s.engine.supervisor.wiring.bells[way[1]].ring()
        assert await asking == undisturbed
        assert len(await s.ask([png(number + 10)])) == 3
        assert sum(s.engine.supervisor.restarts.values()) > restarts
        await s.clean()


def test_a_visual_actor_that_hangs_while_it_comes_back_is_started_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv(MARKS, str(marks))

    @in_time
    async def body() -> None:
        settings = with_images(config(start_timeout=20.0))
        async with seeing(tmp_path, settings, visual="tests.actors.visual.late_visual:HangsOnce") as s:
            undisturbed = await s.ask([png(1)])
            s.engine.kill("visual")
            assert await s.ask([png(2)], 3) != undisturbed == await s.ask([png(1)])
        assert len(list(marks.iterdir())) == 3

    body()


@on_shared
async def test_the_cache_survives_the_death_of_others(s: Seeing) -> None:
    images = [[png(1600 + i)] for i in range(8)]
    before = s.numbers
    undisturbed = await asyncio.gather(*[s.ask(one, 400, seed=3) for one in images])
    for victim in ("router", "tokenizer", "worker0"):
        tasks = [asyncio.create_task(s.ask(one, 400, seed=3)) for one in images]
        await asyncio.sleep(0.03)
        s.engine.kill(victim)
        assert await asyncio.gather(*tasks) == undisturbed
    assert since(before, await s.clean(), "encoded") == (8,)


@on_shared
async def test_many_images_leave_memory_flat(s: Seeing) -> None:
    """`tools.faults.chaos --images --soak` does this for half an hour and looks at all processes."""

    def footprint() -> dict[str, int]:
        """Private and shared memory of the visual actor in KiB, and its descriptors."""
        proc = Path(f"/proc/{s.engine.pid('visual')}")
        lines = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        memory = {name: int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem")}
        return memory | {"descriptors": len(os.listdir(proc / "fd"))}

    async def some(start: int, end: int) -> None:
        for first in range(start, end, 10):
            await asyncio.gather(*[s.ask([png(i, 200, 150)], 1) for i in range(first, first + 10)])

    await some(0, 100)
    before = footprint()
    await some(100, 400)
    after = footprint()
    assert after["descriptors"] == before["descriptors"]
    assert after["RssAnon"] - before["RssAnon"] < 20 << 10  # the files alone have 26 MiB
    assert after["RssShmem"] - before["RssShmem"] < 1 << 10
    assert (await s.clean())["items"] == 10
