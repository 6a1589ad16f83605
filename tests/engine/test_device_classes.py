"""Length classes and embeddings in steps as on a GPU, here with interpreted kernels."""

from __future__ import annotations

import pytest
import torch

from tests.engine.test_golden_steps import Run

pytest.importorskip("triton", reason="triton is not installed")

from lightllm_mp.engine import cuda_steps, executor


class CapturedInName:
    """Stands for CUDA graphs: it runs what they would capture."""

    def __init__(self, work, most: int) -> None:
        self.work, self.most = work, most

    def capture(self, count: int | None = None) -> None:
        self.work(self.most)

    def size_for(self, sequences: int) -> int | None:
        return self.most

    def replay(self, size: int) -> None:
        self.work(size)


pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the model is on the CPU")


@pytest.mark.parametrize("graphs", [False, True])
def test_the_golden(monkeypatch: pytest.MonkeyPatch, graphs: bool) -> None:
    monkeypatch.setattr(executor, "_steps", lambda device: cuda_steps.CudaSteps)
    run = Run("qwen", 1)
    if graphs:
        run.executor._steps._graphs = CapturedInName(run.executor._steps._decode, 16)
    run.ask_all()
    run.work().check()
    run.ask(3, turn=2, emitted=10)
    run.work()
    assert run.ids[203] == run.golden[3]["greedy_ids"][10:]


@pytest.mark.parametrize("folder", ["internlm2_reward", "qwen3_embedding", "bge_m3"])
def test_rows_of_numbers(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr(executor, "_steps", lambda device: cuda_steps.CudaSteps)
    run = Run(folder, 1, step_tokens=200 if folder == "bge_m3" else 20, context=128)
    run.executor.warm_up()
    run.ask_all()
    run.work().check()
