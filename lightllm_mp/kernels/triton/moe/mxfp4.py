"""Experts in MXFP4 on a GPU: blocks of 32 4-bit floats (E2M1) that share a power of two.

The bits of a 4-bit float, as the highest bits of a float32 or bfloat16, give a number that is 2^126 times smaller. The
block's scale includes this factor, so one multiplication turns the bits into the weight.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from gguf import GGMLQuantizationType
from torch import Tensor

from lightllm_mp.errors import ModelError
from lightllm_mp.kernels.quantised import BlockWeight

MXFP4 = GGMLQuantizationType.MXFP4
BLOCK = 32
"""Inputs of a block."""
STEP = 2 * BLOCK
"""Inputs of a step. Byte j of a step holds the codes of inputs j (low half) and j + BLOCK."""
GREATEST_SCALE = 128
"""The stored scale of 2^1. Times 2^126 it is the greatest that bfloat16 holds. A model's weights are far smaller."""

_PAIR = """
    shl.b32 a, {0}, 6; and.b32 a, a, 0x01c001c0; shl.b32 b, {0}, 12; lop3.b32 a, b, 0x80008000, a, 0xea;
    fma.rn.bf16x2 {1}, a, {3}, z;
    shl.b32 a, {0}, 2; and.b32 a, a, 0x01c001c0; shl.b32 b, {0}, 8; lop3.b32 a, b, 0x80008000, a, 0xea;
    fma.rn.bf16x2 {2}, a, {4}, z;
"""
"""Input: two bytes in the halves of a word, and their scales. Output: the weights of their low and high codes."""
PTX = (
    "{ .reg .b32 t, u, a, b, z; mov.b32 z, 0x80008000;"
    " prmt.b32 t, $4, 0, 0x4140; prmt.b32 u, $4, 0, 0x4342;"
    + _PAIR.format("t", "$0", "$2", "$5", "$7")
    + _PAIR.format("u", "$1", "$3", "$6", "$8")
    + "}"
)
"""Makes bfloat16 of the low and of the high codes of four bytes."""


class Mxfp4Experts(NamedTuple):
    """Weights [experts, n, k], with k padded to a multiple of STEP by zeros."""

    codes: Tensor
    """uint8 [experts, n, steps, BLOCK]"""
    scales: Tensor
    """int32 [experts, steps, n]: two bfloat16, the power of two times 2^126 of a step's first block in the low half."""
    inputs: int
    """k"""

    @property
    def experts(self) -> int:
        return self.codes.shape[0]


def packed_experts(weights: tuple[BlockWeight, ...]) -> Mxfp4Experts:
    """Packs the weights of all experts. Raises ModelError for weights above 12, which no model has."""
    rows = torch.stack([torch.cat([part.rows for part in weight.parts]) for weight in weights])
    inputs = weights[0].parts[0].columns
    experts, n = rows.shape[:2]
    blocks = rows.view(experts, n, -1, 1 + BLOCK // 2)
    if blocks.shape[2] % 2:
        blocks = torch.nn.functional.pad(blocks, (0, 0, 0, 1))
    exponents, codes = blocks[..., 0], blocks[..., 1:]
    if (greatest := int(exponents.max())) > GREATEST_SCALE:
        raise ModelError(f"experts in MXFP4 with a scale of 2^{greatest - 127} are not supported on a GPU")
    codes = torch.cat((codes & 15, codes >> 4), -1).view(experts, n, -1, 2, BLOCK)
    packed = codes[..., 0, :] | codes[..., 1, :] << 4
    words = ((exponents.int() + 126) << 7).view(experts, n, -1, 2)
    scales = words[..., 0] | words[..., 1] << 16
    return Mxfp4Experts(packed.contiguous(), scales.transpose(1, 2).contiguous(), inputs)


def conversion(x: Tensor) -> str | None:
    """PTX of the conversion to the type of x; None if there is no such PTX."""
    return PTX if x.is_cuda and x.dtype == torch.bfloat16 else None


@triton.jit
def weights_of(codes, scales, LIKE: tl.constexpr, BY: tl.constexpr):
    """The weights of the low and of the high codes of bytes, as type LIKE. `scales`: the word of scales of each
    byte."""
    if BY is not None:
        even = (scales & 0xFFFF).to(tl.int16).to(tl.bfloat16, bitcast=True)
        odd = (scales >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        low, high = tl.inline_asm_elementwise(
            BY, "=r,=r,=r,=r,r,r,r,r,r", [codes, even, odd], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        code = codes.to(tl.int32)
        even = (scales << 16).to(tl.float32, bitcast=True)
        odd = (scales & -65536).to(tl.float32, bitcast=True)
        low = ((code & 7) << 22 | (code & 8) << 28).to(tl.float32, bitcast=True) * even
        high = ((code & 0x70) << 18 | (code & 0x80) << 24).to(tl.float32, bitcast=True) * odd
        low, high = low.to(LIKE), high.to(LIKE)
    return low, high
