"""Makes quantised copies of golden folders, packed here from the formats' descriptions."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file

from lightllm_mp.models.checkpoint.loader import load_model
from tests.models.golden import GOLDENS, prompts
from tests.models.runner import Runner

GROUP = 16
PROJECTIONS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "in_proj_qkvz",
    "in_proj_qkv",
    "in_proj_z",
    "out_proj",
)


def word(codes: list[int]) -> int:
    """Eight codes in an int32, the first in the lowest bits."""
    value = sum(code << (4 * i) for i, code in enumerate(codes))
    return value - (1 << 32) if value >= 1 << 31 else value


def packed_along_columns(codes: torch.Tensor, order: list[int]) -> torch.Tensor:
    """[a, 8 b] -> int32 [a, b]; place i of a word holds column order[i]."""
    lines = [[[line[c + j] for j in order] for c in range(0, len(line), 8)] for line in codes.tolist()]
    return torch.tensor([[word(eight) for eight in line] for line in lines], dtype=torch.int32)


def rounded(weight: torch.Tensor, group_of: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [k, n], zero points [groups, n] from 1 to 15 and half-precision scales [groups, n] of a weight [n, k]."""
    wide, groups = weight.float().t(), int(group_of.max()) + 1
    codes, n = torch.zeros(wide.shape, dtype=torch.long), wide.shape[1]
    zeros, scales = torch.zeros((groups, n), dtype=torch.long), torch.zeros((groups, n), dtype=torch.float16)
    for g in range(groups):
        lines = group_of == g
        low, high = wide[lines].amin(0).clamp(max=-1e-4), wide[lines].amax(0).clamp(min=0)
        scales[g] = ((high - low) / 15).half()
        zeros[g] = (-low / scales[g].float()).round().clamp(1, 15).long()
        codes[lines] = (wide[lines] / scales[g].float() + zeros[g]).round().clamp(0, 15).long()
    return codes, zeros, scales


def awq(stem: str, weight: torch.Tensor, group: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The tensors of one projection, and what they stand for."""
    group_of = torch.arange(weight.shape[1]) // group
    codes, zeros, scales = rounded(weight, group_of)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors = {
        stem + ".qweight": packed_along_columns(codes, order),
        stem + ".qzeros": packed_along_columns(zeros, order),
        stem + ".scales": scales,
    }
    return tensors, ((codes - zeros[group_of]) * scales.float()[group_of]).t().contiguous()


def gptq(
    stem: str, weight: torch.Tensor, group: int, *, act_order: torch.Tensor | None = None, version: int = 1
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    k = weight.shape[1]
    group_of = torch.arange(k) // group
    if act_order is not None:
        group_of = group_of[act_order]
    codes, zeros, scales = rounded(weight, group_of)
    tensors = {
        stem + ".qweight": packed_along_columns(codes.t(), list(range(8))).t().contiguous(),
        stem + ".qzeros": packed_along_columns(zeros - (1 if version == 1 else 0), list(range(8))),
        stem + ".scales": scales,
        stem + ".g_idx": group_of.int(),
    }
    return tensors, ((codes - zeros[group_of]) * scales.float()[group_of]).t().contiguous()


def make(folder, pack, config: dict, *, stems=lambda stem: True, golden: str = "llama") -> None:
    """Two copies of a golden folder: `packed`, and `plain` with what the packed one stands for. `pack` (name of a
    module, weight) gives the tensors of a projection, and what they stand for; only `stems` are packed."""
    tensors = load_file(GOLDENS / golden / "model.safetensors")
    plain, packed = {name: tensor.float() for name, tensor in tensors.items()}, dict(tensors)
    for name in tensors:
        stem = name.removesuffix(".weight")
        if stem.endswith(PROJECTIONS) and stems(stem):
            parts, plain[name] = pack(stem, packed.pop(name))
            packed.update(parts)
    given = json.loads((GOLDENS / golden / "config.json").read_text())
    for kind, content, extra in (("plain", plain, {}), ("packed", packed, {"quantization_config": config})):
        (folder / kind).mkdir()
        (folder / kind / "config.json").write_text(json.dumps({**given, **extra}))
        save_file(content, folder / kind / "model.safetensors")


def logits(
    path,
    *,
    dtype: torch.dtype = torch.float32,
    chunk: int | None = None,
    golden: str = "llama",
    most: int = 99,
    **options,
) -> torch.Tensor:
    """Logits of the first `most` prompts of a golden folder."""
    runner = Runner(load_model(path, dtype=dtype, **options))
    return torch.cat([runner.prefill(runner.sequence(), prompt.ids, chunk) for prompt in prompts(golden)[:most]])
