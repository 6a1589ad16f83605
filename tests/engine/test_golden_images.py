"""Golden prompts with images through scheduler and executor, which reads embeddings from image memory."""

from __future__ import annotations

import mmap
from functools import cache
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lightllm_mp.messages import Embedded, ImageBlock, ImageInfo, ImageSpan, Release, Sampling, Terms, Tokenized, Wire
from lightllm_mp.plan import PlanBuilder
from lightllm_mp.scheduler.admission import Admission
from lightllm_mp.vision.placeholders import pseudo_ids
from tests.engine.test_golden_steps import GOLDENS, NEW, Run

FOLDERS = ("llava_orig", "llava_hf", "qwen_vl", "qwen2_5_vl", "qwen3_vl")
WHOLE = ("gemma3_vl",)
"""The tokens of an image see each other."""
folders = pytest.mark.parametrize("folder", FOLDERS)
ALIGNED, MEMORY = 64, 2_000_000

KEPT: list[mmap.mmap] = []
"""Pinned memory must stay mapped."""


@cache
def embeddings(folder: str) -> dict[str, np.ndarray]:
    data = load_file(GOLDENS / folder / "golden.safetensors")
    return {name: array for name, array in data.items() if name.startswith("img.")}


class ImageRun(Run):
    """Every image has a block in memory; the rest of the memory must not be read."""

    def __init__(self, folder: str, depth: int = 0, **changes: Any) -> None:
        super().__init__(folder, depth, **changes)
        self.folder, self.held, self.released = folder, set[int](), list[int]()
        self.memory = mmap.mmap(-1, MEMORY)
        self.memory[:] = b"\xff" * MEMORY  # not a number, as float32
        self.blocks: dict[bytes, ImageBlock] = {}
        self.used = ALIGNED
        KEPT.append(self.memory)
        self.executor.images(memoryview(self.memory))

    def block(self, *image: str) -> ImageBlock:
        key = "img." + ".".join(image)
        data = embeddings(self.folder)
        rows = data[key + ".embeds" if key + ".embeds" in data else f"img.{image[0]}.pad.embeds"]
        planes = np.stack((rows, *data.get(key + ".deepstack", ())))
        if key.encode() not in self.blocks:
            self.memory[self.used : self.used + planes.nbytes] = planes.tobytes()
            self.blocks[key.encode()] = ImageBlock(key.encode(), self.used, len(rows), 1)
            self.used += -(-planes.nbytes // ALIGNED) * ALIGNED
        return self.blocks[key.encode()]

    def ask(self, number: int, *, turn: int = 1, emitted: int = 0, **rules: Any) -> None:
        prompt = self.golden[number]
        ids, spans = list(prompt["input_ids"]), []
        for start, end, *image in prompt["image_slots"]:
            block = self.block(*image)
            grid = embeddings(self.folder).get(f"img.{image[0]}.grid_thw", np.empty(0))
            info = ImageInfo(block.key, 0, 0, end - start, tuple(int(n) for n in grid))
            spans.append(ImageSpan(start, info))
            ids[start:end] = pseudo_ids(info, self.scheduler.limits.vocab_size).tolist()
        ids += prompt["greedy_ids"][:emitted]
        asked = {"seed": 0, "max_new_tokens": NEW, "ignore_eos": True, "min_new_tokens": 0, **rules}
        column, rid = np.array(ids, "<i4").tobytes(), turn * 100 + number
        told = Embedded(rid, tuple({span.image.key: self.blocks[span.image.key] for span in spans}.values()))
        request = Tokenized(rid, Terms(Sampling(**asked)), column, prompt["length"], spans=tuple(spans))
        self.scheduler.add(request, told if spans else None)
        self.held |= {rid} if spans else set()

    def _listen(self) -> None:
        events: list[Wire] = self.scheduler.take_events()
        for event in events:
            if isinstance(event, Release):
                self.held.remove(event.rid)
        self.scheduler._events = [event for event in events if not isinstance(event, Release)]
        super()._listen()

    def work(self) -> ImageRun:
        super().work()
        assert not self.held
        return self


def limits(folder: str, step_tokens: int) -> dict[str, int]:
    """Qwen-VL's images have 256 slots each."""
    return {"kv_tokens": 4000, "step_tokens": step_tokens, "context": 700 if folder == "qwen_vl" else 400}


@folders
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("step_tokens", [7, 64])
def test_together(folder: str, depth: int, step_tokens: int) -> None:
    run = ImageRun(folder, depth, **limits(folder, step_tokens))
    run.ask_all()
    run.work().check()


@folders
def test_token_by_token(folder: str) -> None:
    """Every chunk is one token, so an image's last slot may be sampled."""
    run = ImageRun(folder, **limits(folder, 1))
    wanted = range(len(run.golden)) if folder != "qwen_vl" else range(3)
    for number in wanted:
        run.ask(number)
        run.work()
    run.golden = [run.golden[number] for number in wanted]
    run.check()


@pytest.mark.parametrize("folder", [*FOLDERS, "qwen3_5"])
def test_after_a_prefix_hit(folder: str) -> None:
    """All prompts again; cached images are not read, so their memory may hold anything."""
    run = ImageRun(folder, **limits(folder, 64))
    run.ask_all()
    run.work().check()
    text = [number for number, prompt in enumerate(run.golden) if not prompt["image_slots"]]
    last = [
        number for number, p in enumerate(run.golden) if p["image_slots"] and p["image_slots"][-1][1] == p["length"]
    ]
    run.memory[:] = b"\xff" * MEMORY
    again = [number for number in reversed(range(len(run.golden))) if number not in last]
    for number in again:
        run.ask(number, turn=2)
        run.work()
    for number in again:
        assert run.ids[200 + number] == run.golden[number]["greedy_ids"], f"prompt {number}"
        assert run.cached[200 + number] == run.golden[number]["length"] - 1
    assert len(again) > len(text)


@pytest.mark.parametrize("folder", WHOLE)
@pytest.mark.parametrize("emitted", [0, 5])
def test_whole_images(folder: str, emitted: int) -> None:
    """A step holds hardly more than an image; then all prompts again, whose hits end outside images."""
    run = ImageRun(folder, 1, **limits(folder, 20))
    run.ask_all(emitted=emitted)
    run.work().check(emitted=emitted)
    run.ask_all(turn=2)
    run.work().check(turn=2)


@pytest.mark.parametrize("folder", ["llava_orig", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma4", *WHOLE])
@pytest.mark.parametrize("depth", [0, 1])
def test_preempted(folder: str, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admission, "admits", lambda *_: True)
    run = ImageRun(folder, depth, kv_tokens=230 if folder == "qwen3_5" else 200)
    run.ask_all()
    run.work().check()
    assert run.scheduler.gauges()["preemptions"] > 0


@folders
@pytest.mark.parametrize("emitted", [1, 23])
def test_resumed(folder: str, emitted: int) -> None:
    run = ImageRun(folder, **limits(folder, 64))
    run.ask_all(emitted=emitted)
    run.work().check(emitted=emitted)


@pytest.mark.parametrize("folder", ["llava_orig", "qwen2_5_vl"])
def test_images_are_no_history_for_penalties(folder: str) -> None:
    """A repetition penalty on the prompt counts only text: no index is out of bounds, and rules apply."""
    run = ImageRun(folder)
    for number in range(len(run.golden)):
        run.ask(number, repetition_penalty=1.0001, penalize_prompt=True, prompt_logprobs=1)
    run.work()
    assert all(len(run.ids[100 + number]) == NEW for number in range(len(run.golden)))


def plan_of_one(*images: tuple[int, int, int, int]) -> bytes:
    builder = PlanBuilder(0)
    builder.setup(0, 6, Sampling(seed=0))
    builder.write_ids(0, 0, np.array([1, 300, 300, 300, 4, 5]))
    builder.write_slots(0, 0, np.arange(6))
    builder.add(0, 0, 6, sample=True)
    for position, count, offset, first in images:
        builder.add_image(0, position, count, offset, first, 3)
    return builder.pack()


@pytest.mark.parametrize("image", [(5, 2, 64, 0), (-1, 2, 64, 0), (1, 3, 1_999_990, 0), (1, 3, -64, 0), (1, 3, 66, 0)])
def test_a_plan_outside_step_or_memory_is_refused(image: tuple[int, int, int, int]) -> None:
    run = ImageRun("llava_hf")
    with pytest.raises(ValueError, match="a plan names"):
        run.executor.submit(plan_of_one(image))


def test_a_plan_with_images_but_no_memory_is_refused() -> None:
    run = Run("llama")
    with pytest.raises(ValueError, match="no image memory"):
        run.executor.submit(plan_of_one((1, 3, 64, 0)))
