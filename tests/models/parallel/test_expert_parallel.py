"""The ranks' experts together give the result of all experts; a rank reads and holds only its own."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType

from lightllm_mp.kernels.cpu import overlay
from lightllm_mp.models.checkpoint.files import SafetensorsFiles, Tensors
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.decoder.decoder import Decoder
from lightllm_mp.models.decoder.moe import Mixture
from lightllm_mp.models.parallel.group import SingleRank
from tests.models.checkpoint.gguf_file import write_gguf
from tests.models.golden import GOLDENS

FOLDERS = (
    *("deepseek_v2", "deepseek_v3_fp8", "gpt_oss", "minimax_m2", "mixtral"),
    *("qwen3_5_moe", "qwen3_moe", "qwen3_vl_moe"),
)
GROUPS = pytest.mark.parametrize(("size", "ep"), [(3, 3), (4, 2)])


class OneOf(SingleRank):
    """A rank that exchanges nothing with the others."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def mixtures(decoder: Decoder) -> list[Mixture]:
    return [layer.mlp for layer in decoder.layers if isinstance(layer.mlp, Mixture)]


def check_sum(path: Path, size: int, ep: int, dtype: torch.dtype, tolerance: float) -> None:
    whole = load_model(path, dtype=dtype)
    ranks = [load_model(path, dtype=dtype, group=OneOf(rank, size), ep=ep) for rank in range(size)]
    x = torch.randn(9, whole.spec.hidden, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert mixtures(whole)
    for i, mixture in enumerate(mixtures(whole)):
        expected = mixture.forward(x).float()
        parts = [mixtures(rank)[i].forward(x).float() for rank in ranks]
        assert (sum(parts) - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("folder", FOLDERS)
@GROUPS
def test_parts_add_up(folder: str, size: int, ep: int) -> None:
    """Two or three of eight experts on a rank; two ranks that share four experts. Shared experts count once."""
    check_sum(GOLDENS / folder, size, ep, torch.float32, 1e-5)


@pytest.mark.skipif(overlay.table() is None, reason="the C extension is not built")
@pytest.mark.parametrize("folder", ["mixtral", "qwen3_moe"])
@GROUPS
def test_parts_of_ggml_blocks_add_up(folder: str, size: int, ep: int, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", folder, kind=GGMLQuantizationType.Q8_0)
    check_sum(tmp_path / "model.gguf", size, ep, torch.bfloat16, 1e-2)


def test_a_rank_reads_its_own_experts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[set[str]] = []
    stream = SafetensorsFiles.stream

    def spy(files: SafetensorsFiles, wanted: set[str], partly: Set[str]) -> Tensors:
        read.append({name for name in wanted if ".experts." in name})
        return stream(files, wanted, partly)

    monkeypatch.setattr(SafetensorsFiles, "stream", spy)
    whole = load_model(GOLDENS / "mixtral", dtype=torch.float32).weight_bytes
    ranks = [load_model(GOLDENS / "mixtral", dtype=torch.float32, group=OneOf(i, 3), ep=3) for i in range(3)]
    every, *own = read
    assert sorted(name for names in own for name in names) == sorted(every)
    assert [len(names) * 8 // len(every) for names in own] == [2, 3, 3]
    assert ranks[0].weight_bytes < ranks[1].weight_bytes < whole
