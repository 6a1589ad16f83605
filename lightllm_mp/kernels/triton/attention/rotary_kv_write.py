"""One kernel for head norms, rotary embedding of queries and keys, and the KV write."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout, HeadNorms, LayerKV, Rotation
from lightllm_mp.kernels.triton.attention.kv_write import in_steps, largest, scale_of, value_base
from lightllm_mp.kernels.triton.attention.rotary import turned
from lightllm_mp.kernels.triton.attention.score_transforms import spacing
from lightllm_mp.kernels.triton.block_sizes import next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel, wait_for_inputs

HEADS_EACH = 16
"""Heads of one token that a program handles."""
NORMS = {"rms": 1, "layer": 2}
GIVEN = 3
"""The kernel's number for RMS norms whose mean squares are an argument."""
SQUARES_BLOCK = 1024


def head_squares(qkv: Tensor, layout: HeadLayout) -> Tensor:
    tokens = qkv.shape[0]
    out = qkv.new_empty((2, tokens), dtype=torch.float32)
    if tokens:
        _squares_kernel.launch(
            (tokens, 2, 1),
            _squares_kernel.arguments(
                qkv=qkv,
                out=out,
                tokens=tokens,
                HEADS=layout.heads,
                KV_HEADS=layout.kv_heads,
                DIM=layout.head_dim,
                BLOCK=min(SQUARES_BLOCK, next_power_of_2(layout.heads * layout.head_dim)),
            ),
        )
    return out


@kernel(numbers=["tokens"], waits=True)
def _squares_kernel(
    qkv,
    out,
    tokens,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A program sums the squares of a token's queries (0) or keys (1)."""
    wait_for_inputs(EARLY)
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    line = qkv + token * ((HEADS + 2 * KV_HEADS) * DIM) + part * (HEADS * DIM)
    count = tl.where(part == 0, HEADS * DIM, KV_HEADS * DIM)
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, HEADS * DIM, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(line + at, mask=at < count, other=0.0).to(tl.float32)
        sums += value * value
    tl.store(out + part * tokens + token, tl.sum(sums, 0))


def rotary_kv_write(
    qkv: Tensor, rotation: Rotation, kv: LayerKV, batch: Batch, layout: HeadLayout, norms: HeadNorms | None
) -> Tensor:
    tokens, half = qkv.shape[0], rotation.cos.shape[1]
    q = qkv.new_empty((tokens, layout.heads * layout.head_dim))
    if not tokens:
        return q
    rest = layout.head_dim - 2 * half
    by = _norm_arguments(norms, qkv)
    query_scale = rotation.query_scale
    _rotary_kernel.launch(
        (tokens, triton.cdiv(layout.heads + 2 * layout.kv_heads, HEADS_EACH), 1),
        _rotary_kernel.arguments(
            qkv=qkv,
            out=q,
            keys=kv.keys,
            values=kv.values,
            key_scales=kv.keys if kv.key_scales is None else kv.key_scales,
            value_scales=kv.values if kv.value_scales is None else value_base(kv),
            cos=rotation.cos,
            sin=rotation.sin,
            rotary_at=batch.rotary_at,
            slots=batch.slots,
            query_scale=qkv if query_scale is None else query_scale,
            q_weight=by.q_weight,
            k_weight=by.k_weight,
            q_bias=by.q_bias,
            k_bias=by.k_bias,
            q_squares=by.q_squares,
            k_squares=by.k_squares,
            HEADS=layout.heads,
            KV_HEADS=layout.kv_heads,
            DIM=layout.head_dim,
            HALF=half,
            HALF_BLOCK=next_power_of_2(half) if half else 0,
            REST_BLOCK=next_power_of_2(rest) if rest else 0,
            INTERLEAVED=layout.interleaved,
            QUERY_SCALED=query_scale is not None,
            SPACING=spacing(kv.key_scales),
            LARGEST=largest(kv.keys, kv.key_scales),
            NORM=by.kind,
            Q_BY_HEAD=by.q_by_head,
            K_BY_HEAD=by.k_by_head,
            BIASED=by.biased,
            VALUES=layout.value_norm,
            Q_EPS=by.q_eps,
            K_EPS=by.k_eps,
            EACH=HEADS_EACH,
        ),
    )
    return q


class _NormArguments(NamedTuple):
    """Head norms in the form of the kernel. If the norms lack a tensor, any tensor stands in its place."""

    q_weight: Tensor
    k_weight: Tensor
    q_bias: Tensor
    k_bias: Tensor
    q_squares: Tensor
    k_squares: Tensor
    kind: int = 0
    """0: no norm."""
    q_by_head: bool = False
    """Whether each head has its own weights."""
    k_by_head: bool = False
    biased: bool = False
    q_eps: float = 0.0
    k_eps: float = 0.0


def _norm_arguments(norms: HeadNorms | None, unused: Tensor) -> _NormArguments:
    if norms is None:
        return _NormArguments(*[unused] * 6)
    query, key = norms
    assert query.kind == key.kind
    assert (query.bias is None) == (key.bias is None)
    given = query.mean_squares is not None and key.mean_squares is not None
    return _NormArguments(
        query.weight,
        key.weight,
        unused if query.bias is None else query.bias,
        unused if key.bias is None else key.bias,
        unused if query.mean_squares is None else query.mean_squares,
        unused if key.mean_squares is None else key.mean_squares,
        GIVEN if given else NORMS[query.kind],
        query.weight.dim() == 2,
        key.weight.dim() == 2,
        query.bias is not None,
        query.eps,
        key.eps,
    )


@kernel(waits=True)
def _rotary_kernel(
    qkv,
    out,
    keys,
    values,
    key_scales,
    value_scales,
    cos,
    sin,
    rotary_at,
    slots,
    query_scale,
    q_weight,
    k_weight,
    q_bias,
    k_bias,
    q_squares,
    k_squares,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    QUERY_SCALED: tl.constexpr,
    SPACING: tl.constexpr,
    LARGEST: tl.constexpr,
    NORM: tl.constexpr,
    Q_BY_HEAD: tl.constexpr,
    K_BY_HEAD: tl.constexpr,
    BIASED: tl.constexpr,
    VALUES: tl.constexpr,
    Q_EPS: tl.constexpr,
    K_EPS: tl.constexpr,
    EACH: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A program holds the rotated components of a head (`first` and `second` of each pair) and the `rest` apart."""
    wait_for_inputs(EARLY)
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * EACH + tl.arange(0, EACH))[:, None]
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * DIM
    is_value = head >= HEADS + KV_HEADS
    line = tl.load(rotary_at + token)
    there = head < HEADS + 2 * KV_HEADS
    kind = out.dtype.element_ty
    if HALF:
        pair = tl.arange(0, HALF_BLOCK)[None, :]
        turning = there & (pair < HALF)
        if INTERLEAVED:
            at, partner = 2 * pair, 2 * pair + 1
        else:
            at, partner = pair, HALF + pair
        first = tl.load(source + at, mask=turning, other=0.0).to(tl.float32)
        second = tl.load(source + partner, mask=turning, other=0.0).to(tl.float32)
    if REST_BLOCK:
        d = 2 * HALF + tl.arange(0, REST_BLOCK)[None, :]
        resting = there & (d < DIM)
        rest = tl.load(source + d, mask=resting, other=0.0).to(tl.float32)

    if NORM:
        if NORM == 2:
            total = tl.zeros([EACH], tl.float32)
            if HALF:
                total += tl.sum(first, 1) + tl.sum(second, 1)
            if REST_BLOCK:
                total += tl.sum(rest, 1)
            mean = tl.where(is_value, 0.0, total[:, None] / DIM)
            if HALF:
                first = tl.where(turning, first - mean, 0.0)
                second = tl.where(turning, second - mean, 0.0)
            if REST_BLOCK:
                rest = tl.where(resting, rest - mean, 0.0)
        if NORM == 3:
            spread = tl.where(head < HEADS, tl.load(q_squares + token), tl.load(k_squares + token))
        else:
            square = tl.zeros([EACH], tl.float32)
            if HALF:
                square += tl.sum(first * first, 1) + tl.sum(second * second, 1)
            if REST_BLOCK:
                square += tl.sum(rest * rest, 1)
            spread = square[:, None] / DIM
        factor = tl.rsqrt(spread + tl.where(head < HEADS, Q_EPS, K_EPS))
        if HALF:
            first = _weighted(
                first, factor, at, turning, head, q_weight, k_weight, q_bias, k_bias,
                HEADS, KV_HEADS, DIM, Q_BY_HEAD, K_BY_HEAD, BIASED, VALUES,
            ).to(kind).to(tl.float32)  # fmt: skip
            second = _weighted(
                second, factor, partner, turning, head, q_weight, k_weight, q_bias, k_bias,
                HEADS, KV_HEADS, DIM, Q_BY_HEAD, K_BY_HEAD, BIASED, VALUES,
            ).to(kind).to(tl.float32)  # fmt: skip
        if REST_BLOCK:
            rest = _weighted(
                rest, factor, d, resting, head, q_weight, k_weight, q_bias, k_bias,
                HEADS, KV_HEADS, DIM, Q_BY_HEAD, K_BY_HEAD, BIASED, VALUES,
            ).to(kind).to(tl.float32)  # fmt: skip

    if HALF:
        a, b = turned(first, second, cos, sin, line, pair, HALF)
        first = tl.where(is_value, first, a).to(kind).to(tl.float32)
        second = tl.where(is_value, second, b).to(kind).to(tl.float32)
    if QUERY_SCALED:
        more = tl.where(head < HEADS, tl.load(query_scale + line), 1.0)
        if HALF:
            first, second = first * more, second * more
        if REST_BLOCK:
            rest = rest * more

    is_key = (head >= HEADS) & (head < HEADS + KV_HEADS)
    slot = tl.load(slots + token).to(tl.int64) * KV_HEADS
    to_q = out + (token * HEADS + head) * DIM
    key_place, value_place = slot + head - HEADS, slot + head - HEADS - KV_HEADS
    step = tl.full([EACH, 1], 1.0, tl.float32)
    if LARGEST > 0.0:
        magnitude = tl.zeros([EACH], tl.float32)
        if HALF:
            magnitude = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
        if REST_BLOCK:
            magnitude = tl.maximum(magnitude, tl.max(tl.abs(rest), 1))
        scale, step = scale_of(magnitude[:, None], LARGEST)
        tl.store(key_scales + SPACING * key_place, scale, mask=is_key)
        tl.store(value_scales + SPACING * value_place + SPACING - 1, scale, mask=is_value & there)
    to_k, to_v = keys + key_place * DIM, values + value_place * DIM
    if HALF:
        _to_place(to_q, to_k, to_v, at, first, step, turning, head, is_key, is_value, HEADS, LARGEST)
        _to_place(to_q, to_k, to_v, partner, second, step, turning, head, is_key, is_value, HEADS, LARGEST)
    if REST_BLOCK:
        _to_place(to_q, to_k, to_v, d, rest, step, resting, head, is_key, is_value, HEADS, LARGEST)


@triton.jit
def _weighted(
    x,
    factor,
    at,
    inside,
    head,
    q_weight,
    k_weight,
    q_bias,
    k_bias,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    Q_BY_HEAD: tl.constexpr,
    K_BY_HEAD: tl.constexpr,
    BIASED: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Components `at` of queries and keys times factor and weight, plus bias; values times the factor, or unchanged."""
    of_q, of_k = inside & (head < HEADS), inside & (head >= HEADS) & (head < HEADS + KV_HEADS)
    q_at, k_at = head * (DIM * Q_BY_HEAD) + at, (head - HEADS) * (DIM * K_BY_HEAD) + at
    weight = tl.load(q_weight + q_at, mask=of_q, other=0.0).to(tl.float32)
    weight += tl.load(k_weight + k_at, mask=of_k, other=0.0).to(tl.float32)
    result = x * factor * weight
    if BIASED:
        result += tl.load(q_bias + q_at, mask=of_q, other=0.0).to(tl.float32)
        result += tl.load(k_bias + k_at, mask=of_k, other=0.0).to(tl.float32)
    if VALUES:
        x = x * factor
    return tl.where(of_q | of_k, result, x)


@triton.jit
def _to_place(
    to_q, to_k, to_v, at, x, step, inside, head, is_key, is_value, HEADS: tl.constexpr, LARGEST: tl.constexpr
):
    """Stores queries in the result, keys and values in their slot."""
    tl.store(to_q + at, x.to(to_q.dtype.element_ty), mask=inside & (head < HEADS))
    stored = x
    if LARGEST > 0.0:
        stored = in_steps(x, step, LARGEST)
    tl.store(to_k + at, stored.to(to_k.dtype.element_ty), mask=inside & is_key)
    tl.store(to_v + at, stored.to(to_v.dtype.element_ty), mask=inside & is_value)
