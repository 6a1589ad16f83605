"""Random rows of ggml blocks: every bit pattern of the codes, and realistic scales."""

from __future__ import annotations

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from lightllm_mp.kernels.quantised import BlockRows

Kind = GGMLQuantizationType
SCALES_AT = {
    Kind.Q4_0: (0,),
    Kind.Q4_1: (0, 2),
    Kind.Q5_0: (0,),
    Kind.Q5_1: (0, 2),
    Kind.Q8_0: (0,),
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
    Kind.IQ4_NL: (0,),
    Kind.IQ4_XS: (0,),
    Kind.MXFP4: (),
}
"""Offsets of a block's float16 numbers."""


def random_blocks(kind: Kind, n: int, k: int, seed: int = 0) -> BlockRows:
    """[n, k] in blocks; k is a multiple of the type's block."""
    generator = np.random.default_rng(seed)
    inputs, size = GGML_QUANT_SIZES[kind]
    blocks = generator.integers(0, 256, (n, k // inputs, size), dtype=np.uint8)
    for at in SCALES_AT[kind]:
        scales = (generator.standard_normal((n, k // inputs)) * 0.01).astype(np.float16)
        blocks[:, :, at : at + 2] = scales[..., None].view(np.uint8)
    if kind == Kind.MXFP4:  # an exponent instead
        blocks[:, :, 0] = generator.integers(112, 124, blocks.shape[:2])
    return BlockRows(torch.from_numpy(blocks.reshape(n, -1)), kind)


def values(blocks: BlockRows) -> Tensor:
    """float32 [n, k], by the `gguf` library."""
    return torch.from_numpy(dequantize(blocks.rows.numpy(), blocks.type))
