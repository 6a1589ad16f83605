"""Rotary embedding of queries and keys and the KV write, one kernel."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout, HeadNorms, LayerKV, Rotation
from lightllm_mp.kernels.triton.launch import Kernel

HEADS_EACH = 16
"""Heads of one token that a program handles."""


def rotary_kv_write(
    qkv: Tensor, rotation: Rotation, kv: LayerKV, batch: Batch, layout: HeadLayout, norms: HeadNorms | None
) -> Tensor:
    tokens, half = qkv.shape[0], rotation.cos.shape[1]
    if norms is not None or rotation.query_scale is not None or kv.key_scales is not None or layout.interleaved:
        return reference.TABLE.rotary_kv_write(qkv, rotation, kv, batch, layout, norms)
    q = qkv.new_empty((tokens, layout.heads * layout.head_dim))
    if not tokens:
        return q
    rest = layout.head_dim - 2 * half
    _ROTARY.launch(
        (tokens, triton.cdiv(layout.heads + 2 * layout.kv_heads, HEADS_EACH), 1),
        (qkv, q, kv.keys, kv.values, rotation.cos, rotation.sin, batch.rotary_at, batch.slots),
        (),
        (
            layout.heads,
            layout.kv_heads,
            layout.head_dim,
            half,
            triton.next_power_of_2(half),
            triton.next_power_of_2(rest) if rest else 0,
            HEADS_EACH,
        ),
    )
    return q


@triton.jit
def _rotary_kernel(
    qkv,
    out,
    keys,
    values,
    cos,
    sin,
    rotary_at,
    slots,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    EACH: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * EACH + tl.arange(0, EACH))[:, None]
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * DIM
    slot = tl.load(slots + token).to(tl.int64) * KV_HEADS
    to_q = out + (token * HEADS + head) * DIM
    to_k = keys + (slot + head - HEADS) * DIM
    to_v = values + (slot + head - HEADS - KV_HEADS) * DIM

    pair = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < HEADS + 2 * KV_HEADS) & (pair < HALF)
    first = tl.load(source + pair, mask=inside, other=0.0)
    second = tl.load(source + HALF + pair, mask=inside, other=0.0)
    angle = tl.load(rotary_at + token) * HALF + pair
    c = tl.load(cos + angle, mask=pair < HALF, other=0.0)
    s = tl.load(sin + angle, mask=pair < HALF, other=0.0)
    wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
    turned_first = (wide_first * c - wide_second * s).to(first.dtype)
    turned_second = (wide_second * c + wide_first * s).to(first.dtype)
    _to_place(to_q, to_k, to_v, pair, turned_first, first, head, inside, HEADS, KV_HEADS)
    _to_place(to_q, to_k, to_v, HALF + pair, turned_second, second, head, inside, HEADS, KV_HEADS)
    if REST_BLOCK:
        at = 2 * HALF + tl.arange(0, REST_BLOCK)[None, :]
        inside = (head < HEADS + 2 * KV_HEADS) & (at < DIM)
        rest = tl.load(source + at, mask=inside, other=0.0)
        _to_place(to_q, to_k, to_v, at, rest, rest, head, inside, HEADS, KV_HEADS)


@triton.jit
def _to_place(to_q, to_k, to_v, at, turned, plain, head, inside, HEADS: tl.constexpr, KV_HEADS: tl.constexpr):
    """Queries to the result, keys and values to their slot."""
    tl.store(to_q + at, turned, mask=inside & (head < HEADS))
    tl.store(to_k + at, turned, mask=inside & (head >= HEADS) & (head < HEADS + KV_HEADS))
    tl.store(to_v + at, plain, mask=inside & (head >= HEADS + KV_HEADS))


_ROTARY = Kernel(_rotary_kernel)
