"""Images through steps on a GPU: pinned image memory, CUDA graphs for decode, golden ids."""

from __future__ import annotations

import pytest
import torch

from tests.engine.test_golden_images import FOLDERS, ImageRun, limits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def cuda_run(folder: str, step_tokens: int) -> ImageRun:
    run = ImageRun(folder, 1, device="cuda", **limits(folder, step_tokens))
    run.executor.warm_up()
    return run


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("step_tokens", [7, 64])
def test_the_golden(folder: str, step_tokens: int) -> None:
    run = cuda_run(folder, step_tokens)
    run.ask_all()
    run.work().check()


def test_a_lone_slot_that_is_sampled_from() -> None:
    run = cuda_run("llava_orig", 1)
    last = next(number for number, prompt in enumerate(run.golden) if prompt["name"] == "image_last")
    run.ask(last)
    run.work()
    assert run.ids[100 + last] == run.golden[last]["greedy_ids"]


def test_image_memory_is_pinned() -> None:
    images = cuda_run("llava_hf", 64).executor._images
    assert images is not None
    assert images._bytes.is_pinned()


def test_a_step_with_images_waits_for_nothing() -> None:
    """torch raises where an operation would keep the host waiting for the device."""
    run = cuda_run("qwen2_5_vl", 64)
    run.ask_all()
    plan = run.scheduler.plan()
    assert plan is not None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.executor.submit(plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    run.scheduler.done(run.executor.collect())
    run.work().check()
