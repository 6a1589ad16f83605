"""The default model in other types of weights: a GGUF file of wider rows for llama.cpp's quantiser, and the integer
types of checkpoints."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from torch import Tensor

from lightllm_mp.kernels.quantised import GroupedWeight, QuantisedWeight
from lightllm_mp.kernels.reference.quantised import quantise

BLOCK = 256
"""Inputs of a block of the K types: rows must be a multiple."""
FTYPES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""Names of llama-quantize that are not the type's own."""
EPSILON = "llama.attention.layer_norm_rms_epsilon"
GROUP = 64
"""Inputs that share a scale and a zero point in the 4-bit integers."""


def grouped(weight: Tensor, *, by_size: bool = False) -> GroupedWeight:
    """[n, k] of any floating type in 4 bits, as AWQ stores it; `by_size`: inputs of a like size share a group, as GPTQ
    has it with act-order."""
    wide = weight.float()
    n, k = wide.shape
    order = wide.square().sum(0).argsort() if by_size else torch.arange(k)
    groups = wide[:, order].view(n, k // GROUP, GROUP)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-8).half().float()
    zeros = (-low / scales).round()
    group_of = torch.empty(k, dtype=torch.int32)
    group_of[order] = torch.arange(k, dtype=torch.int32) // GROUP
    wide_scales, wide_zeros = scales[:, group_of.long()], zeros[:, group_of.long()]
    codes = (wide / wide_scales + wide_zeros).round().clamp(0, 15).to(torch.uint8)
    return GroupedWeight(codes, scales, zeros.to(torch.uint8), group_of)


INTEGERS: dict[str, Callable[[Tensor], QuantisedWeight]] = {
    "int8": lambda weight: quantise(weight, "int8"),
    "awq": grouped,
    "gptq": lambda weight: grouped(weight, by_size=True),
}
"""Weights of checkpoints by their type: 8-bit values with a scale per output, 4-bit codes with groups of inputs."""


def write_in_blocks(kind: str, wide: Path, program: Path) -> Path:
    """A file of `wide`'s model, by llama-quantize: matrices of layers in the one type, the embedding in Q8_0."""
    path = wide.with_name(f"{kind}.gguf")
    options = ["--token-embedding-type", "q8_0"]
    command = [str(program), *options, str(wide), str(path), FTYPES.get(kind, kind)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return path


def filled(size: int) -> int:
    """`size`, rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def write_wide(source: Path, path: Path) -> Path:
    """A Llama's GGUF file in float32, whose rows are filled up with zeros to a multiple of 256.

    It computes what `source` computes: more heads give zeros, and the norms take into account that more values are
    averaged.
    """
    reader = GGUFReader(source)
    keys = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    width = keys["llama.embedding_length"].contents()
    wide = filled(width)
    heads, kv_heads = (keys[f"llama.attention.head_count{end}"].contents() for end in ("", "_kv"))
    dim = keys["llama.rope.dimension_count"].contents()
    more = wide // dim // (heads // kv_heads) * dim  # of keys and values
    shown: dict[str, Any] = {
        "llama.embedding_length": wide,
        "llama.attention.head_count": wide // dim,
        "llama.attention.head_count_kv": more // dim,
        "llama.feed_forward_length": filled(keys["llama.feed_forward_length"].contents()),
        EPSILON: keys[EPSILON].contents() * width / wide,
    }
    writer = GGUFWriter(path, "llama")
    for name, field in keys.items():
        if name != "general.architecture":
            parts = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, shown.get(name, field.contents()), field.types[0], parts)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, GGMLQuantizationType(tensor.tensor_type)).astype(np.float32)
        if tensor.name.endswith("norm.weight"):
            values = values * np.float32((width / wide) ** 0.5)
        shape = [filled(size) for size in values.shape]
        if tensor.name.endswith(("attn_k.weight", "attn_v.weight")):
            shape[0] = more
        elif tensor.name in ("token_embd.weight", "output.weight"):
            shape[0] = len(values)
        full = np.zeros(shape, np.float32)
        full[tuple(map(slice, values.shape))] = values
        writer.add_tensor(tensor.name, full)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
