"""GGUF files whose weights stay in blocks on a CPU: as near to float32 as expanded ones, exact in every shard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType

from lightllm_mp.kernels.cpu import overlay
from lightllm_mp.kernels.table import Routing
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.decoder.decoder import Decoder
from lightllm_mp.models.model_config import gguf_model
from lightllm_mp.models.parallel.group import SingleRank
from tests.models.checkpoint.gguf_file import write_gguf
from tests.models.checkpoint.test_gguf_families import DEEPSEEK, SIZES, random_folder
from tests.models.golden import GOLDENS, prompts
from tests.models.runner import Runner

CPU = overlay.table()
pytestmark = pytest.mark.skipif(CPU is None, reason="the C extension is not built")
FOLDERS = ("llama", "qwen3_moe", "mixtral", "deepseek_v2", "bloom", "gemma2", "internlm2", "stablelm", "minimax_m2")
KINDS = (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1)


@pytest.fixture(scope="module", params=[(f, k) for f in FOLDERS for k in KINDS], ids=lambda p: f"{p[0]}-{p[1].name}")
def file(request, tmp_path_factory) -> tuple[Path, str]:
    folder, kind = request.param
    path = tmp_path_factory.mktemp("blocks") / f"{folder}.gguf"
    write_gguf(path, folder, kind=kind)
    return path, folder


def load(path: Path, dtype: torch.dtype = torch.bfloat16, *, blocks: bool = True) -> Decoder:
    return load_model(path, dtype=dtype, ops=CPU if blocks else replace(CPU, block_types=frozenset()))


def logits(decoder: Decoder, folder: str, chunk: int | None = None) -> torch.Tensor:
    runner, all_logits = Runner(decoder), []
    for prompt in prompts(folder):
        all_logits.append(runner.prefill(runner.sequence(), prompt.ids, chunk))
    return torch.cat(all_logits)


def test_blocks_are_as_near_to_float32_as_expanded_weights(file):
    path, folder = file
    exact = logits(load(path, torch.float32), folder)
    packed, expanded = load(path), load(path, blocks=False)
    # Of the better tokens: if rounding changes the choice of an expert, that token and those after it differ.
    mine, theirs = ((logits(model, folder) - exact).norm(dim=1).quantile(0.25) for model in (packed, expanded))
    assert mine < 1.1 * theirs
    assert packed.weight_bytes < expanded.weight_bytes


@pytest.fixture(scope="module", params=["folder", "file"])
def mxfp4(request, tmp_path_factory) -> Path:
    """gpt-oss with experts in MXFP4, as it is shipped and as a GGUF file."""
    if request.param == "folder":
        return GOLDENS / "gpt_oss_mxfp4"
    path = tmp_path_factory.mktemp("blocks") / "gpt_oss.gguf"
    write_gguf(path, "gpt_oss", kind=GGMLQuantizationType.MXFP4)
    return path


def test_experts_stay_in_mxfp4(mxfp4):
    """As near to float32 as expanded ones, and a chunk changes nothing."""
    exact, packed = logits(load(mxfp4, torch.float32), "gpt_oss_mxfp4"), load(mxfp4)
    expanded = load(mxfp4, blocks=False)
    assert packed.weight_bytes < expanded.weight_bytes
    mine, theirs = ((logits(m, "gpt_oss_mxfp4") - exact).norm(dim=1).quantile(0.25) for m in (packed, expanded))
    assert mine < 1.1 * theirs
    for layer in packed.layers:
        assert layer.mlp.experts.gate_up.parts
        assert layer.mlp.experts.down.parts
    assert torch.equal(logits(packed, "gpt_oss_mxfp4", 7), logits(packed, "gpt_oss_mxfp4"))


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_keep_experts_in_mxfp4(mxfp4, size):
    """Shards are whole blocks; the last ranks may have zeros only."""
    whole, x = load(mxfp4), torch.randn(9, 64).bfloat16()
    ranks = [load_model(mxfp4, dtype=torch.bfloat16, ops=CPU, group=OneOf(rank, size)) for rank in range(size)]
    weights, numbers = CPU.route(torch.randn(9, 6), Routing(3, True))
    for i, layer in enumerate(whole.layers):
        mine = [rank.layers[i].mlp.experts for rank in ranks]
        assert all(one.down.parts and one.down.k == 32 for one in mine)
        summed = sum(CPU.experts(x, one, weights, numbers, "swiglu_oai").float() for one in mine)
        expected = CPU.experts(x, layer.mlp.experts, weights, numbers, "swiglu_oai").float()
        assert (summed - expected).norm() < 1e-2 * expected.norm()


def test_cuts_change_nothing(file):
    path, folder = file
    if folder == "deepseek_v2":
        pytest.skip("latent attention is torch's on a CPU where sizes are no multiples of 16")
    decoder = load(path)
    whole = logits(decoder, folder)
    assert torch.equal(logits(decoder, folder, 1), whole)
    assert torch.equal(logits(decoder, folder, 7), whole)
    runner, longest = Runner(decoder), max(prompts(folder), key=lambda prompt: len(prompt.ids))
    others = [(runner.sequence(), prompt.ids) for prompt in prompts(folder)]
    together = runner.step([*others, (runner.sequence(), longest.ids)])
    assert torch.equal(torch.cat(together[:-1]), whole)


class OneOf(SingleRank):
    """A rank that computes nothing."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_keep_blocks_where_cuts_fall_between_them(tmp_path, size):
    """The ranks' projections together give the whole one's result."""
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", kind=GGMLQuantizationType.Q8_0)
    whole = load(path)
    ranks = [load_model(path, dtype=torch.bfloat16, ops=CPU, group=OneOf(rank, size)) for rank in range(size)]
    layer, parts = whole.layers[0], [rank.layers[0] for rank in ranks]
    x = torch.randn(5, whole.spec.hidden).bfloat16()
    assert all(isinstance(part.mlp.gate_up, overlay.QuantisedLinear) for part in parts)
    gated = [CPU.gated(CPU.linear(x, part.mlp.gate_up), "silu") for part in parts]
    summed = torch.stack([CPU.linear_float(g, part.mlp.down) for g, part in zip(gated, parts, strict=True)]).sum(0)
    expected = CPU.linear_float(CPU.gated(CPU.linear(x, layer.mlp.gate_up), "silu"), layer.mlp.down)
    assert (summed - expected).norm() < 1e-2 * expected.norm()
    heads = torch.cat([CPU.linear_float(x, rank.head._linear) for rank in ranks], 1)[:, : whole.spec.vocab]
    assert torch.equal(heads, CPU.linear_float(x, whole.head._linear))
    assert all(isinstance(rank.embedding.table, overlay.QuantisedLinear) for rank in ranks)


def test_a_matrix_that_is_turned_is_expanded_first(tmp_path):
    """DeepSeek's `attn_k_b` has its inputs as rows in the file, and blocks cannot be transposed."""
    sizes = {"qk_nope_head_dim": 32, "kv_lora_rank": 64, "q_lora_rank": 64, "v_head_dim": 32}
    folder = random_folder(tmp_path / "hf", {**SIZES, **DEEPSEEK, **sizes})
    path = tmp_path / "model.gguf"
    write_gguf(path, folder, kind=GGMLQuantizationType.Q8_0)
    assert gguf_model(path)[2].file.tensors["blk.0.attn_k_b.weight"].type == GGMLQuantizationType.Q8_0
    blocks, plain = load(path), load(path, blocks=False)
    for mine, theirs in zip(blocks.layers, plain.layers, strict=True):
        assert torch.equal(mine.attention.key_up.packed, theirs.attention.key_up.packed)
