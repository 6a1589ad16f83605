"""Prefill attention: chunks of new tokens attend to all slots of their sequences, including cached prefixes."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout, LayerKV
from lightllm_mp.kernels.triton.attention.online_softmax import empty_softmax, softmax_block, with_sink
from lightllm_mp.kernels.triton.attention.score_transforms import bent, extras, scales_at
from lightllm_mp.kernels.triton.attention.tuned_attention import PrefillBlocks, precision, wide
from lightllm_mp.kernels.triton.block_sizes import dot_block
from lightllm_mp.kernels.triton.launch import kernel


def attend(
    q: Tensor, kv: LayerKV, out: Tensor, batch: Batch, layout: HeadLayout, blocks: PrefillBlocks, tiles: Tensor
) -> None:
    """Fills the rows of `out` that belong to sequences with more than one new token."""
    more = extras(q, kv, layout)
    spans = layout.image_spans and batch.visible is not None
    _tile_attention_kernel.launch(
        (layout.heads, tiles.shape[0], 1),
        _tile_attention_kernel.arguments(
            q=q,
            keys=kv.keys,
            values=kv.values,
            key_scales=more.key_scales,
            value_scales=more.value_scales,
            slopes=more.slopes,
            sinks=more.sinks,
            out=out,
            tiles=tiles,
            seq_start=batch.seq_start,
            context=batch.context,
            rows=batch.rows,
            slot_table=batch.slot_table,
            visible=batch.visible if spans else batch.context,
            table_stride=batch.slot_table.stride(0),
            HEADS=layout.heads,
            KV_HEADS=layout.kv_heads,
            DIM=layout.head_dim,
            DIM_BLOCK=dot_block(layout.head_dim),
            WINDOW=layout.window,
            CAUSAL=layout.causal,
            SPANS=spans,
            READ=more.read,
            FACTOR=more.factor,
            CAP=more.cap,
            SLOPED=more.sloped,
            SUNK=more.sunk,
            LEFT=more.left,
            QUERIES=blocks.queries,
            KEYS=blocks.keys,
            PRECISION=precision(q.dtype),
            WIDE=wide(kv.keys),
        ),
        warps=blocks.warps,
        stages=blocks.stages,
    )


@kernel(numbers=["table_stride"])
def _tile_attention_kernel(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    slopes,
    sinks,
    out,
    tiles,
    seq_start,
    context,
    rows,
    slot_table,
    visible,
    table_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    SPANS: tl.constexpr,
    READ: tl.constexpr,
    FACTOR: tl.constexpr,
    CAP: tl.constexpr,
    SLOPED: tl.constexpr,
    SUNK: tl.constexpr,
    LEFT: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    head, t = tl.program_id(0), tl.program_id(1)
    i = tl.load(tiles + 2 * t)
    if i >= 0:
        start, length = tl.load(seq_start + i), tl.load(context + i)
        new = tl.load(seq_start + i + 1) - start
        line = tl.load(tiles + 2 * t + 1) * QUERIES + tl.arange(0, QUERIES)
        first = length - new + tl.load(tiles + 2 * t + 1) * QUERIES
        d = tl.arange(0, DIM_BLOCK)
        there = (line < new)[:, None] & (d < DIM)[None, :]
        place = ((start + line).to(tl.int64)[:, None] * HEADS + head) * DIM + d[None, :]
        query = tl.load(q + place, mask=there, other=0.0)
        slots = slot_table + tl.load(rows + i).to(tl.int64) * table_stride
        kv_head = head // (HEADS // KV_HEADS)
        position = length - new + line
        last = position  # the last key that a query sees
        if SPANS:
            last = tl.maximum(tl.load(visible + start + line, mask=line < new, other=0) - 1, position)
        slope = 0.0
        if SLOPED:
            slope = tl.load(slopes + head)

        # The window hides keys [low, open) from some queries. Keys [shut, high) are in the future of some queries. All
        # queries see [open, shut).
        high = length
        shut = length // KEYS * KEYS
        if CAUSAL:
            high = tl.minimum(first + QUERIES, length)
            shut = (first + 1) // KEYS * KEYS
        low, open_ = 0, 0
        if WINDOW:
            low = tl.maximum(first - WINDOW + 1, 0) // KEYS * KEYS
            open_ = tl.minimum(tl.cdiv(tl.maximum(high - WINDOW, 0), KEYS) * KEYS, shut)
        if SPANS:
            high = tl.minimum(tl.maximum(high, tl.max(last, 0) + 1), length)
        best, total, sums = empty_softmax(QUERIES, DIM_BLOCK)
        if WINDOW:
            best, total, sums = _walk(
                low, open_, query, keys, values, key_scales, value_scales, slope, kv_head,
                slots, position, last, length, best, total, sums, True,
                KV_HEADS, DIM, DIM_BLOCK, WINDOW, CAUSAL, READ, FACTOR, CAP, SLOPED, LEFT, KEYS, PRECISION, WIDE,
            )  # fmt: skip
        best, total, sums = _walk(
            open_, shut, query, keys, values, key_scales, value_scales, slope, kv_head,
            slots, position, last, length, best, total, sums, False,
            KV_HEADS, DIM, DIM_BLOCK, WINDOW, CAUSAL, READ, FACTOR, CAP, SLOPED, LEFT, KEYS, PRECISION, WIDE,
        )  # fmt: skip
        best, total, sums = _walk(
            tl.maximum(shut, low), high, query, keys, values, key_scales, value_scales, slope, kv_head,
            slots, position, last, length, best, total, sums, True,
            KV_HEADS, DIM, DIM_BLOCK, WINDOW, CAUSAL, READ, FACTOR, CAP, SLOPED, LEFT, KEYS, PRECISION, WIDE,
        )  # fmt: skip
        if SUNK:
            best, total, shrink = with_sink(best, total, tl.load(sinks + head))
            sums *= shrink[:, None]
        tl.store(out + place, (sums / total[:, None]).to(out.dtype.element_ty), mask=there)


@triton.jit
def _walk(
    start,
    end,
    query,
    keys,
    values,
    key_scales,
    value_scales,
    slope,
    kv_head,
    slots,
    position,
    last,
    length,
    best,
    total,
    sums,
    MASKED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    READ: tl.constexpr,
    FACTOR: tl.constexpr,
    CAP: tl.constexpr,
    SLOPED: tl.constexpr,
    LEFT: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Folds the keys [start, end) of one head into the running maximum, sum of exponentials and weighted values."""
    d = tl.arange(0, DIM_BLOCK)[None, :]
    n = tl.arange(0, KEYS)
    k_head, v_head = keys + kv_head * DIM, values + kv_head * DIM
    for base in range(start, end, KEYS):
        key = base + n
        within = key < length
        if MASKED and WINDOW:  # a slot before all windows may belong to another sequence
            within &= key > tl.min(position, 0) - WINDOW
        if MASKED:
            slot = tl.load(slots + key, mask=within, other=0)
        else:
            slot = tl.load(slots + key)
        if WIDE:
            slot = slot.to(tl.int64)
        at = slot[:, None] * (KV_HEADS * DIM) + d
        if MASKED:
            k = tl.load(k_head + at, mask=within[:, None] & (d < DIM), other=0.0)
        elif DIM != DIM_BLOCK:
            k = tl.load(k_head + at, mask=d < DIM, other=0.0)
        else:
            k = tl.load(k_head + at)
        scores = tl.dot(query, tl.trans(k.to(query.dtype)), input_precision=PRECISION)
        if READ:
            of_key, of_value = scales_at(key_scales, value_scales, slot, kv_head, within, KV_HEADS, READ)
            scores *= of_key[None, :]
        scores = bent(scores, key[None, :] - position[:, None], slope, FACTOR, CAP, SLOPED)
        if MASKED:
            seen = within[None, :]
            if CAUSAL:
                seen = (key[None, :] <= last[:, None]) & within[None, :]
            if WINDOW:
                seen &= key[None, :] > position[:, None] - WINDOW
            scores = tl.where(seen, scores, float("-inf"))
        weights, shrink, best = softmax_block(scores, best, LEFT, 1, MASKED and WINDOW > 0)
        total = total * shrink + tl.sum(weights, 1)
        if READ:
            weights *= of_value[None, :]
        if MASKED:
            v = tl.load(v_head + at, mask=within[:, None] & (d < DIM), other=0.0)
        elif DIM != DIM_BLOCK:
            v = tl.load(v_head + at, mask=d < DIM, other=0.0)
        else:
            v = tl.load(v_head + at)
        sums = tl.dot(weights.to(query.dtype), v.to(query.dtype), sums * shrink[:, None], input_precision=PRECISION)
    return best, total, sums
