"""What `tools.bench.perplexity --types` compares: the same model with wider rows, and integer weights."""

from __future__ import annotations

from pathlib import Path

import torch
from gguf import GGUFReader

from lightllm_mp.kernels.reference.quantised import expanded
from tests.models.checkpoint.gguf_file import write_gguf
from tests.models.checkpoint.quantised_folders import logits
from tools.harness.weight_types import BLOCK, INTEGERS, write_wide


def test_wider_rows_compute_the_same(tmp_path: Path) -> None:
    write_gguf(tmp_path / "narrow.gguf", "llama")
    wide = write_wide(tmp_path / "narrow.gguf", tmp_path / "wide.gguf")
    assert all(tensor.shape[0] % BLOCK == 0 for tensor in GGUFReader(wide).tensors)
    difference = logits(wide, most=2) - logits(tmp_path / "narrow.gguf", most=2)
    assert difference.abs().max().item() < 1e-4


def test_integers_are_near_the_weights() -> None:
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 257) / 256
    errors = {}
    for kind, quantised in INTEGERS.items():
        errors[kind] = (expanded(quantised(weight), torch.float32) - weight).norm().item() / weight.norm().item()
    assert errors["int8"] < 0.01
    assert errors["gptq"] < 0.1
    assert errors["awq"] < 0.1
