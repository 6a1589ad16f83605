"""Makes quantised copies of golden folders, packed by the formats' descriptions."""

from __future__ import annotations

import json
from collections.abc import Sequence

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
    """Codes that fill an int32, the first in the lowest bits."""
    value = sum(code << (32 // len(codes) * i) for i, code in enumerate(codes))
    return value - (1 << 32) if value >= 1 << 31 else value


def packed_along_columns(codes: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """[a, e b] -> int32 [a, b]; place i of a word, of e = len(order), holds column order[i]."""
    each = len(order)
    lines = [[[line[c + j] for j in order] for c in range(0, len(line), each)] for line in codes.tolist()]
    return torch.tensor([[word(codes) for codes in line] for line in lines], dtype=torch.int32)


def rounded(
    weight: torch.Tensor, group_of: torch.Tensor, bits: int = 4, *, symmetric: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [k, n], zero points [groups, n] of at least 1, and half-precision scales [groups, n] of a weight [n, k]."""
    wide, groups, most = weight.float().t(), int(group_of.max()) + 1, 2**bits - 1
    codes, n = torch.zeros(wide.shape, dtype=torch.long), wide.shape[1]
    zeros, scales = torch.zeros((groups, n), dtype=torch.long), torch.zeros((groups, n), dtype=torch.float16)
    for g in range(groups):
        lines = group_of == g
        low, high = wide[lines].amin(0).clamp(max=-1e-4), wide[lines].amax(0).clamp(min=0)
        if symmetric:
            high = torch.maximum(high, -low)
            low = -high
        scales[g] = ((high - low) / most).half()
        zeros[g] = 2 ** (bits - 1) if symmetric else (-low / scales[g].float()).round().clamp(1, most).long()
        codes[lines] = (wide[lines] / scales[g].float() + zeros[g]).round().clamp(0, most).long()
    return codes, zeros, scales


def stand_for(codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group_of: torch.Tensor) -> torch.Tensor:
    """[n, k]"""
    return ((codes - zeros[group_of]) * scales.float()[group_of]).t().contiguous()


Packed = tuple[dict[str, torch.Tensor], torch.Tensor]
"""The tensors of one projection, and the weight that they encode."""


def awq(stem: str, weight: torch.Tensor, group: int, *, symmetric: bool = False) -> Packed:
    """Without zero points if it is symmetric."""
    group_of = torch.arange(weight.shape[1]) // group
    codes, zeros, scales = rounded(weight, group_of, symmetric=symmetric)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors = {
        stem + ".qweight": packed_along_columns(codes, order),
        stem + ".qzeros": packed_along_columns(zeros, order),
        stem + ".scales": scales,
    }
    if symmetric:
        del tensors[stem + ".qzeros"]
    return tensors, stand_for(codes, zeros, scales, group_of)


def gptq(
    stem: str,
    weight: torch.Tensor,
    group: int,
    *,
    act_order: torch.Tensor | None = None,
    version: int = 1,
    bits: int = 4,
    symmetric: bool = False,
) -> Packed:
    k, order = weight.shape[1], range(32 // bits)
    group_of = torch.arange(k) // group
    if act_order is not None:
        group_of = group_of[act_order]
    codes, zeros, scales = rounded(weight, group_of, bits, symmetric=symmetric)
    tensors = {
        stem + ".qweight": packed_along_columns(codes.t(), order).t().contiguous(),
        stem + ".qzeros": packed_along_columns(zeros - (1 if version == 1 else 0), order),
        stem + ".scales": scales,
        stem + ".g_idx": group_of.int(),
    }
    return tensors, stand_for(codes, zeros, scales, group_of)


def compressed_words(
    stem: str,
    weight: torch.Tensor,
    group: int,
    *,
    bits: int = 4,
    symmetric: bool = True,
    act_order: torch.Tensor | None = None,
) -> Packed:
    """`pack-quantized` of compressed-tensors."""
    (n, k), order = weight.shape, range(32 // bits)
    group_of = torch.arange(k) // group
    if act_order is not None:
        group_of = group_of[act_order]
    codes, zeros, scales = rounded(weight, group_of, bits, symmetric=symmetric)
    tensors = {
        stem + ".weight_packed": packed_along_columns(codes.t(), order),
        stem + ".weight_scale": scales.t().contiguous(),
        stem + ".weight_shape": torch.tensor([n, k]),
    }
    if not symmetric:
        tensors[stem + ".weight_zero_point"] = packed_along_columns(zeros, order).t().contiguous()
    if act_order is not None:
        tensors[stem + ".weight_g_idx"] = group_of.int()
    return tensors, stand_for(codes, zeros, scales, group_of)


def nvfp4(stem: str, weight: torch.Tensor, *, modelopt: bool) -> Packed:
    """Each value is the nearest of eight magnitudes, times an e4m3 scale of 16 inputs, times or divided by a factor."""
    n, k = weight.shape
    magnitudes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    groups = weight.float().view(n, k // 16, 16)
    whole = weight.float().abs().max() / 6 / 400
    steps = (groups.abs().amax(2) / 6 / whole).to(torch.float8_e4m3fn)
    scales = steps.float()[:, :, None] * whole
    places = ((groups / scales).nan_to_num().abs()[..., None] - magnitudes).abs().argmin(-1)
    codes = (places + 8 * (groups < 0)).view(n, k)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    value = (magnitudes[places] * torch.where(groups < 0, -1, 1) * scales).view(n, k)
    if modelopt:
        tensors = {"weight": packed, "weight_scale": steps, "weight_scale_2": whole, "input_scale": torch.tensor(1.0)}
    else:
        tensors = {"weight_packed": packed, "weight_scale": steps, "weight_global_scale": (1 / whole).reshape(1)}
    return {f"{stem}.{part}": tensor for part, tensor in tensors.items()}, value


def compressed(form: str, **weights) -> dict:
    """A `quantization_config` of compressed-tensors."""
    group = {"targets": ["Linear"], "input_activations": None, "weights": {"num_bits": 8, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*gate$"],
    }


def make(folder, pack, config: dict, *, stems=lambda stem: True, golden: str = "llama", before=dict) -> None:
    """Two copies of a golden folder: `packed`, and `plain` with the weights that it encodes. `pack` (name of a module,
    weight) gives the tensors of a projection and the weight that they encode; only `stems` are packed. `before` gives
    the tensors another layout."""
    tensors = before(load_file(GOLDENS / golden / "model.safetensors"))
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
