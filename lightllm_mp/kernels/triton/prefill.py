"""Attention of chunks of new tokens over their sequences' slots, cached prefixes included."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout
from lightllm_mp.kernels.triton.launch import Kernel
from lightllm_mp.kernels.triton.tuned import padded, prefill_blocks


def attend(
    q: Tensor, keys: Tensor, values: Tensor, out: Tensor, batch: Batch, layout: HeadLayout, tiles: Tensor
) -> None:
    """Fills the lines of `out` that belong to sequences with more than one new token."""
    blocks = prefill_blocks(layout.head_dim, q.dtype, batch.tokens * layout.heads)
    _TILE.launch(
        (layout.heads, tiles.shape[0], 1),
        (q, keys, values, out, tiles, batch.seq_start, batch.context, batch.rows, batch.slot_table),
        (batch.slot_table.stride(0),),
        (
            layout.heads,
            layout.kv_heads,
            layout.head_dim,
            padded(layout.head_dim),
            layout.scale * math.log2(math.e),
            layout.window,
            blocks.queries,
            blocks.keys,
            "ieee" if q.dtype == torch.float32 else "tf32",
        ),
        warps=blocks.warps,
        stages=blocks.stages,
    )


@triton.jit(do_not_specialize=["table_stride"])
def _tile_attention_kernel(
    q,
    keys,
    values,
    out,
    tiles,
    seq_start,
    context,
    rows,
    slot_table,
    table_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
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
        k_head, v_head = keys + kv_head * DIM, values + kv_head * DIM
        position = length - new + line

        # Keys [low, open) are hidden from some queries by the window, [open, shut) from none, [shut, high) as future.
        high = tl.minimum(first + QUERIES, length)
        shut = (first + 1) // KEYS * KEYS
        low, open_ = 0, 0
        if WINDOW:
            low = tl.maximum(first - WINDOW + 1, 0) // KEYS * KEYS
            open_ = tl.minimum(tl.cdiv(tl.maximum(high - WINDOW, 0), KEYS) * KEYS, shut)
        best = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        sums = tl.zeros([QUERIES, DIM_BLOCK], tl.float32)
        if WINDOW:
            best, total, sums = _walk(
                low, open_, query, k_head, v_head, slots, position, length, best, total, sums,
                True, KV_HEADS, DIM, DIM_BLOCK, SCALE, WINDOW, KEYS, PRECISION,
            )  # fmt: skip
        best, total, sums = _walk(
            open_, shut, query, k_head, v_head, slots, position, length, best, total, sums,
            False, KV_HEADS, DIM, DIM_BLOCK, SCALE, WINDOW, KEYS, PRECISION,
        )  # fmt: skip
        best, total, sums = _walk(
            tl.maximum(shut, low), high, query, k_head, v_head, slots, position, length, best, total, sums,
            True, KV_HEADS, DIM, DIM_BLOCK, SCALE, WINDOW, KEYS, PRECISION,
        )  # fmt: skip
        tl.store(out + place, (sums / total[:, None]).to(out.dtype.element_ty), mask=there)


@triton.jit
def _walk(
    start,
    end,
    query,
    k_head,
    v_head,
    slots,
    position,
    length,
    best,
    total,
    sums,
    MASKED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Folds the keys [start, end) of one head into the running maximum, sum of exponentials and weighted values."""
    d = tl.arange(0, DIM_BLOCK)[None, :]
    n = tl.arange(0, KEYS)
    for base in range(start, end, KEYS):
        key = base + n
        if MASKED:
            slot = tl.load(slots + key, mask=key < length, other=0).to(tl.int64)
            there = (key < length)[:, None] & (d < DIM)
        else:
            slot = tl.load(slots + key).to(tl.int64)
            there = (key >= 0)[:, None] & (d < DIM)
        at = slot[:, None] * (KV_HEADS * DIM) + d
        if MASKED or DIM != DIM_BLOCK:
            k = tl.load(k_head + at, mask=there, other=0.0)
        else:
            k = tl.load(k_head + at)
        scores = tl.dot(query, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            seen = (key[None, :] <= position[:, None]) & (key < length)[None, :]
            if WINDOW:
                seen &= key[None, :] > position[:, None] - WINDOW
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1) * SCALE)
        top = higher
        if MASKED and WINDOW:
            top = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores * SCALE - top[:, None])
        shrink = tl.exp2(best - top)
        total = total * shrink + tl.sum(weights, 1)
        if MASKED or DIM != DIM_BLOCK:
            v = tl.load(v_head + at, mask=there, other=0.0)
        else:
            v = tl.load(v_head + at)
        sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision=PRECISION)
        best = higher
    return best, total, sums


_TILE = Kernel(_tile_attention_kernel)
