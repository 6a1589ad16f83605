"""Images in steps as on a GPU, here with interpreted kernels; test_images_cuda.py has the real ones."""

from __future__ import annotations

import pytest
import torch

from tests.engine.test_golden_images import ImageRun, limits

if torch.cuda.is_available():
    pytest.skip("the model is on the CPU", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from lightllm_mp.engine import cuda_steps, executor
from tests.engine.test_device_classes import CapturedInName

FEW = (1, 2, 3, 6)
"""Prompts without an image, with one in the middle, with one at the beginning, and with two."""


@pytest.mark.parametrize(
    ("folder", "step_tokens", "graphs"),
    [
        *((folder, *way) for folder in ("llava_orig", "qwen2_5_vl") for way in ((7, False), (7, True), (64, True))),
        ("qwen3_vl", 7, True),
    ],
)
def test_the_golden(monkeypatch: pytest.MonkeyPatch, folder: str, step_tokens: int, graphs: bool) -> None:
    monkeypatch.setattr(executor, "_steps", lambda device: cuda_steps.CudaSteps)
    run = ImageRun(folder, 1, **limits(folder, step_tokens))
    if graphs:
        run.executor._steps._graphs = CapturedInName(run.executor._steps._decode, 16)
    if step_tokens < 64:  # interpreted kernels are slow
        run.golden = [run.golden[number] for number in FEW]
    run.ask_all()
    run.work().check()


@pytest.mark.parametrize("graphs", [False, True])
def test_token_by_token(monkeypatch: pytest.MonkeyPatch, graphs: bool) -> None:
    """A single sampled slot of an image looks like a decode step, but a graph would not read the image."""
    monkeypatch.setattr(executor, "_steps", lambda device: cuda_steps.CudaSteps)
    run = ImageRun("llava_orig", **limits("llava_orig", 1))
    if graphs:
        run.executor._steps._graphs = CapturedInName(run.executor._steps._decode, 16)
    last = next(number for number, prompt in enumerate(run.golden) if prompt["name"] == "image_last")
    run.ask(last)
    run.work()
    run.golden = [run.golden[last]]
    run.ids[100], run.logprobs[100] = run.ids[100 + last], run.logprobs[100 + last]
    run.check()
