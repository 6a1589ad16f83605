"""8-bit keys and values, read as 16-bit words of two elements.

The instruction that loads a matrix operand from shared memory moves units of 16 bits; bytes would go one by one. So
rows are read as words, and even and odd elements are two operands: a product over a row is a sum of two products, and a
result has its columns in two halves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

WHOLE, INT8, FP8 = 0, 1, 2
_KINDS = {torch.int8: INT8, torch.float8_e4m3fn: FP8}

_PTX = {
    # 7 bits are the fraction of a number from 128 to 255; the eighth says whether to subtract 128 or 256
    (INT8, torch.bfloat16): """{ .reg .b32 a, b, one;
        lop3.b32 a, $1, 0x007f007f, 0x43004300, 0xea;
        lop3.b32 b, $1, 0x00800080, 0xc300c300, 0xea;
        mov.b32 one, 0x3f803f80;
        fma.rn.bf16x2 $0, a, one, b; }""",
    # 8 bits, the highest inverted, are the fraction of a number from 1024 to 1279, which is 1152 too large
    (INT8, torch.float16): """{ .reg .b32 a, b;
        lop3.b32 a, $1, 0x00ff00ff, 0x64806480, 0x6a;
        mov.b32 b, 0x64806480;
        sub.f16x2 $0, a, b; }""",
    # sign, exponent and fraction move to their places; the exponent biases differ by 120 (bfloat16) and 8 (float16)
    (FP8, torch.bfloat16): """{ .reg .b32 a, b, scale, zero;
        shl.b32 a, $1, 4;
        shl.b32 b, $1, 8;
        and.b32 a, a, 0x07f007f0;
        lop3.b32 a, b, 0x80008000, a, 0xea;
        mov.b32 scale, 0x7b807b80;
        mov.b32 zero, 0x80008000;
        fma.rn.bf16x2 $0, a, scale, zero; }""",
    (FP8, torch.float16): """{ .reg .b32 a, b, scale;
        shl.b32 a, $1, 7;
        shl.b32 b, $1, 8;
        and.b32 a, a, 0x3f803f80;
        lop3.b32 a, b, 0x80008000, a, 0xea;
        mov.b32 scale, 0x5c005c00;
        mul.f16x2 $0, a, scale; }""",
}
"""Convert the low bytes of two words exactly, without the slow conversion instructions. NaN is not kept."""
_SHIFT = "shr.u32 $0, $1, 8;"


class PackedBytes(NamedTuple):
    """Constants of a kernel."""

    kind: int
    """WHOLE: elements of 16 bits or more, not pairs."""
    ptx: str | None
    """None for float32 queries and in the interpreter."""
    shift: str | None


def pairs(stored: Tensor, like: torch.dtype) -> PackedBytes:
    """How elements of `stored` become numbers of type `like`. Rows of odd length are read whole."""
    kind = _KINDS.get(stored.dtype, WHOLE) if stored.shape[-1] % 2 == 0 else WHOLE
    ptx = _PTX.get((kind, like)) if stored.is_cuda else None
    return PackedBytes(kind, ptx, _SHIFT if ptx else None)


@triton.jit
def as_words(elements):
    """The pointer as one to words of two elements."""
    return elements.to(tl.pointer_type(tl.int16), bitcast=True)


@triton.jit
def even_of(words, LIKE: tl.constexpr, KIND: tl.constexpr, PTX: tl.constexpr):
    """The low byte of each word as a number of type LIKE."""
    if PTX is not None:
        bits = tl.inline_asm_elementwise(PTX, "=r,r", [words], dtype=tl.int16, is_pure=True, pack=2)
        return bits.to(LIKE, bitcast=True)
    if KIND == 1:
        return ((words << 8) >> 8).to(tl.float32).to(LIKE)
    return (words & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float32).to(LIKE)


@triton.jit
def odd_of(words, LIKE: tl.constexpr, KIND: tl.constexpr, PTX: tl.constexpr, SHIFT: tl.constexpr):
    """The high byte of each word as a number of type LIKE."""
    if SHIFT is not None:  # both words of a register at once; bits that move between them are ignored
        low = tl.inline_asm_elementwise(SHIFT, "=r,r", [words], dtype=tl.int16, is_pure=True, pack=2)
    else:
        low = words >> 8
    return even_of(low, LIKE, KIND, PTX)
