"""Rotary embedding without a KV write (latent attention)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout, Rotation
from lightllm_mp.kernels.triton.block_sizes import next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel

HEADS_EACH = 16
"""The most heads of one token that a program handles."""


def rotate(x: Tensor, rotation: Rotation, batch: Batch, layout: HeadLayout) -> Tensor:
    """`x` may be a view; the result is contiguous."""
    tokens, heads, dim = x.shape
    half = rotation.cos.shape[1]
    out = x.new_empty((tokens, heads, dim))
    if not tokens or not half:
        return out.copy_(x)
    x = x if x.stride(2) == 1 else x.contiguous()
    each, rest = min(HEADS_EACH, next_power_of_2(heads)), dim - 2 * half
    _rotate_kernel.launch(
        (tokens, triton.cdiv(heads, each), 1),
        _rotate_kernel.arguments(
            x=x,
            out=out,
            cos=rotation.cos,
            sin=rotation.sin,
            rotary_at=batch.rotary_at,
            token_stride=x.stride(0),
            head_stride=x.stride(1),
            HEADS=heads,
            DIM=dim,
            HALF=half,
            HALF_BLOCK=next_power_of_2(half),
            REST_BLOCK=next_power_of_2(rest) if rest else 0,
            INTERLEAVED=layout.interleaved,
            EACH=each,
        ),
    )
    return out


@triton.jit
def turned(first, second, cos, sin, line, pair, HALF: tl.constexpr):
    """Pairs of float32 components [heads, pairs], rotated by the angles in row `line` of the tables."""
    at = line * HALF + pair
    c = tl.load(cos + at, mask=pair < HALF, other=0.0)
    s = tl.load(sin + at, mask=pair < HALF, other=0.0)
    return first * c - second * s, second * c + first * s


@kernel(numbers=["token_stride", "head_stride"])
def _rotate_kernel(
    x,
    out,
    cos,
    sin,
    rotary_at,
    token_stride,
    head_stride,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    EACH: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * EACH + tl.arange(0, EACH))[:, None]
    source = x + token * token_stride + head * head_stride
    to = out + (token * HEADS + head) * DIM
    pair = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < HEADS) & (pair < HALF)
    if INTERLEAVED:
        at, partner = 2 * pair, 2 * pair + 1
    else:
        at, partner = pair, HALF + pair
    first = tl.load(source + at, mask=inside, other=0.0)
    second = tl.load(source + partner, mask=inside, other=0.0)
    line = tl.load(rotary_at + token)
    a, b = turned(first.to(tl.float32), second.to(tl.float32), cos, sin, line, pair, HALF)
    tl.store(to + at, a.to(first.dtype), mask=inside)
    tl.store(to + partner, b.to(first.dtype), mask=inside)
    if REST_BLOCK:
        d = 2 * HALF + tl.arange(0, REST_BLOCK)[None, :]
        beyond = (head < HEADS) & (d < DIM)
        tl.store(to + d, tl.load(source + d, mask=beyond, other=0.0), mask=beyond)
