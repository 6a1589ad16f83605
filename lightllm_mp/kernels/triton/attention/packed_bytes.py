"""Reads 8-bit keys and values as 16-bit words of two elements.

The instruction that loads a matrix operand from shared memory moves units of 16 bits; bytes would move one by one. So
the kernels read rows as words, and even and odd elements are two operands: a product over a row is a sum of two
products, and a result has its columns in two halves.

16-bit products use float16, whose 11 bits of precision hold 1152 + v for every int8 v. One logical instruction converts
a byte to this number, and sums over the other operand remove the constant from the products. If the GPU has no
instruction for fp8, moving a number's bits gives v / 256.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

WHOLE, INT8, FP8 = 0, 1, 2
_KINDS = {torch.int8: INT8, torch.float8_e4m3fn: FP8}

_TO_HALF = "mov.b32 {l, h}, a; cvt.rn.f16x2.e4m3x2 $0, l;"
_PTX = {
    # 8 bits, with the highest inverted, are the fraction of a number from 1024 to 1279
    "int8": (
        "lop3.b32 $0, $1, 0x00ff00ff, 0x64806480, 0x6a;",
        "shr.u32 a, $1, 8; lop3.b32 $0, a, 0x00ff00ff, 0x64806480, 0x6a;",
    ),
    "fp8": ("prmt.b32 a, $1, 0, 0x0020;" + _TO_HALF, "prmt.b32 a, $1, 0, 0x0031;" + _TO_HALF),
    # sign, exponent and fraction move to their places; the exponent biases differ by 8
    "fp8 by bits": (
        "shl.b32 a, $1, 7; shl.b32 b, $1, 8; and.b32 a, a, 0x3f803f80; lop3.b32 $0, b, 0x80008000, a, 0xea;",
        "shr.u32 a, $1, 1; and.b32 a, a, 0x3f803f80; lop3.b32 $0, $1, 0x80008000, a, 0xea;",
    ),
}
"""PTX that converts the low and the high bytes of two words to float16. NaN is not kept."""


class PackedBytes(NamedTuple):
    """Constants of a kernel. The element is the operand times `factor`, minus `offset`."""

    kind: int
    """WHOLE: elements of 16 bits or more, not pairs."""
    offset: float
    factor: float
    even: str | None
    """None for float32 queries and in the interpreter; likewise `odd`."""
    odd: str | None


def pairs(stored: Tensor, like: torch.dtype) -> PackedBytes:
    """The conversion of elements of `stored` to operands of products, which are float32 if `like` is, else float16.
    Rows of odd length are read whole."""
    kind = _KINDS.get(stored.dtype, WHOLE) if stored.shape[-1] % 2 == 0 else WHOLE
    if kind == WHOLE or like == torch.float32:
        return PackedBytes(kind, 0.0, 1.0, None, None)
    converts = stored.is_cuda and torch.cuda.get_device_capability(stored.device) >= (8, 9)
    form = "int8" if kind == INT8 else "fp8" if converts else "fp8 by bits"
    even, odd = (f"{{ .reg .b32 a, b; .reg .b16 l, h; {ptx} }}" if stored.is_cuda else None for ptx in _PTX[form])
    return PackedBytes(kind, 1152.0 if kind == INT8 else 0.0, 256.0 if form == "fp8 by bits" else 1.0, even, odd)


@triton.jit
def as_words(elements):
    """Casts a pointer to elements to a pointer to words of two elements."""
    return elements.to(tl.pointer_type(tl.int16), bitcast=True)


@triton.jit
def even_of(words, LIKE: tl.constexpr, KIND: tl.constexpr, PTX: tl.constexpr):
    """The low byte of each word as an operand of type LIKE."""
    if PTX is not None:
        bits = tl.inline_asm_elementwise(PTX, "=r,r", [words], dtype=tl.int16, is_pure=True, pack=2)
        return bits.to(LIKE, bitcast=True)
    return _operand(words & 0xFF, LIKE, KIND)


@triton.jit
def odd_of(words, LIKE: tl.constexpr, KIND: tl.constexpr, PTX: tl.constexpr):
    """The high byte of each word as an operand of type LIKE."""
    if PTX is not None:
        bits = tl.inline_asm_elementwise(PTX, "=r,r", [words], dtype=tl.int16, is_pure=True, pack=2)
        return bits.to(LIKE, bitcast=True)
    return _operand((words >> 8) & 0xFF, LIKE, KIND)


@triton.jit
def _operand(byte, LIKE: tl.constexpr, KIND: tl.constexpr):
    """The conversion without inline assembly."""
    if tl.float16 == LIKE:
        if KIND == 1:
            bits = byte ^ 0x6480
        else:
            bits = ((byte & 0x80) << 8) | ((byte & 0x7F) << 7)
        return bits.to(tl.int16).to(LIKE, bitcast=True)
    elif KIND == 1:
        return byte.to(tl.int8).to(LIKE)
    else:
        return byte.to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(LIKE)


@triton.jit
def in_range(even, odd):
    """Scales queries to float16 so that the largest is from 2^14 to 2^15 and none is infinite. Also returns the power
    of two by which to multiply the results."""
    even, odd = even.to(tl.float32), odd.to(tl.float32)
    largest = tl.max(tl.max(tl.maximum(tl.abs(even), tl.abs(odd)), 1), 0)
    power = tl.maximum(largest, 2.0**-60).to(tl.int32, bitcast=True) & 0x7F800000
    factor = (0x7F000000 - power).to(tl.float32, bitcast=True) * 16384.0  # 2^14 / power
    return (even * factor).to(tl.float16), (odd * factor).to(tl.float16), power.to(tl.float32, bitcast=True) / 16384.0
