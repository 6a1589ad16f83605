"""A model that does not fit is refused before its weights are read."""

from __future__ import annotations

import pytest
import torch

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint import loader
from lightllm_mp.models.checkpoint.loader import load_model
from tests.paths import GOLDENS

GOLDEN = GOLDENS / "llama"


def test_a_model_larger_than_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    size = load_model(GOLDEN, dtype=torch.float32).weight_bytes
    monkeypatch.setattr(loader, "free_memory", lambda: size - 1)
    read: list[int] = []
    with pytest.raises(
        ModelError, match=r"no memory for the model: its weights take [\d.]+ [KM]iB, and [\d.]+ [KM]iB is free"
    ):
        load_model(GOLDEN, dtype=torch.float32, progress=lambda done, total: read.append(done))
    assert not read
    monkeypatch.setattr(loader, "free_memory", lambda: size)
    load_model(GOLDEN, dtype=torch.float32)
    monkeypatch.setattr(loader, "free_memory", lambda: size - 1)
    load_model(GOLDEN, dtype=torch.bfloat16)


def test_ranks_on_a_cpu_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "free_memory", lambda: 199)
    loader.check_room(100, "cpu")
    with pytest.raises(ModelError):
        loader.check_room(100, "cpu", ranks=2)


def test_on_cuda_each_has_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    loader.check_room(100, "cuda:1", ranks=2)
    with pytest.raises(ModelError):
        loader.check_room(101, "cuda:1")
