"""Attention of single new tokens over long contexts: equal shares of all contexts together, then their combination."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.table import HeadLayout
from lightllm_mp.kernels.triton.schedule import DecodeShares
from lightllm_mp.kernels.triton.tuned import decode_blocks, padded

if TYPE_CHECKING:
    from lightllm_mp.models.batch import Batch

PARTS_EACH = 16
"""Partial results that a combining program reads at a time."""


def attend(
    q: Tensor, keys: Tensor, values: Tensor, out: Tensor, batch: Batch, layout: HeadLayout, shares: DecodeShares
) -> None:
    """Fills the lines of `out` that belong to sequences with one new token."""
    blocks = decode_blocks(layout.head_dim, q.dtype)
    _part_kernel[(layout.kv_heads, shares.programs)](
        q,
        keys,
        values,
        shares.plan,
        shares.partial,
        shares.logsum,
        batch.seq_start,
        batch.context,
        batch.rows,
        batch.slot_table,
        batch.slot_table.stride(0),
        batch.sequences,
        shares.programs,
        HEADS=layout.heads,
        KV_HEADS=layout.kv_heads,
        GROUP_BLOCK=padded(layout.heads // layout.kv_heads),
        DIM=layout.head_dim,
        DIM_BLOCK=padded(layout.head_dim),
        SCALE=layout.scale * math.log2(math.e),
        WINDOW=layout.window,
        KEYS=blocks.keys,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    _combine_kernel[(batch.sequences, layout.heads)](
        shares.plan,
        shares.partial,
        shares.logsum,
        out,
        batch.seq_start,
        shares.programs,
        HEADS=layout.heads,
        DIM=layout.head_dim,
        DIM_BLOCK=padded(layout.head_dim),
        PARTS=PARTS_EACH,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["table_stride", "sequences", "programs"])
def _part_kernel(
    q,
    keys,
    values,
    plan,
    partial,
    logsum,
    seq_start,
    context,
    rows,
    slot_table,
    table_stride,
    sequences,
    programs,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    SCALE: tl.constexpr,
    WINDOW: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    kv_head, p = tl.program_id(0), tl.program_id(1)
    begins = plan + programs + 1
    share = tl.load(plan)
    i = tl.load(plan + 1 + p)
    at = p * share
    end = tl.minimum(at + share, tl.load(begins + sequences))

    GROUP: tl.constexpr = HEADS // KV_HEADS
    g, d, n = tl.arange(0, GROUP_BLOCK), tl.arange(0, DIM_BLOCK), tl.arange(0, KEYS)
    of_group = (g[:, None] < GROUP) & (d[None, :] < DIM)
    head = kv_head * GROUP + g
    while at < end:
        begin, stop = tl.load(begins + i), tl.minimum(tl.load(begins + i + 1), end)
        length = tl.load(context + i)
        line = slot_table + tl.load(rows + i).to(tl.int64) * table_stride
        query = q + (tl.load(seq_start + i).to(tl.int64) * HEADS + head[:, None]) * DIM + d[None, :]
        query = tl.load(query, mask=of_group, other=0.0)
        shift = begin
        if WINDOW:
            shift -= tl.maximum(length - WINDOW, 0) // KEYS
        best = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
        total = tl.zeros([GROUP_BLOCK], tl.float32)
        sums = tl.zeros([GROUP_BLOCK, DIM_BLOCK], tl.float32)
        for block in range(at - shift, stop - shift):
            key = block * KEYS + n
            seen = key < length
            if WINDOW:
                seen &= key >= length - WINDOW
            slot = tl.load(line + key, mask=seen, other=0).to(tl.int64)
            place = (slot[:, None] * KV_HEADS + kv_head) * DIM + d[None, :]
            there = seen[:, None] & (d[None, :] < DIM)
            k = tl.load(keys + place, mask=there, other=0.0)
            scores = tl.dot(query, tl.trans(k), input_precision=PRECISION) * SCALE
            scores = tl.where(seen[None, :], scores, float("-inf"))
            higher = tl.maximum(best, tl.max(scores, 1))
            weights = tl.exp2(scores - higher[:, None])
            shrink = tl.exp2(best - higher)
            total = total * shrink + tl.sum(weights, 1)
            v = tl.load(values + place, mask=there, other=0.0)
            sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision=PRECISION)
            best = higher
        target = (p + i).to(tl.int64) * HEADS + head
        tl.store(partial + target[:, None] * DIM + d[None, :], sums / total[:, None], mask=of_group)
        tl.store(logsum + target, best + tl.log2(total), mask=g < GROUP)
        at = stop
        i += 1


@triton.jit(do_not_specialize=["programs"])
def _combine_kernel(
    plan,
    partial,
    logsum,
    out,
    seq_start,
    programs,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Weights the parts of one head's context by their sums; a sequence without context becomes zeros."""
    i, head = tl.program_id(0), tl.program_id(1)
    token = tl.load(seq_start + i)
    if tl.load(seq_start + i + 1) - token == 1:
        share = tl.load(plan)
        begin, end = tl.load(plan + programs + 1 + i), tl.load(plan + programs + 2 + i)
        first = begin // share
        count = tl.where(end > begin, (end - 1) // share - first + 1, 0)
        d = tl.arange(0, DIM_BLOCK)
        best, total = float("-inf"), 0.0
        sums = tl.zeros([DIM_BLOCK], tl.float32)
        for base in range(0, count, PARTS):
            part = base + tl.arange(0, PARTS)
            place = (first + i + part).to(tl.int64) * HEADS + head
            weight = tl.load(logsum + place, mask=part < count, other=float("-inf"))
            there = (part < count)[:, None] & (d < DIM)[None, :]
            result = tl.load(partial + place[:, None] * DIM + d[None, :], mask=there, other=0.0)
            higher = tl.maximum(best, tl.max(weight, 0))
            weight = tl.exp2(weight - higher)
            shrink = tl.exp2(best - higher)
            total = total * shrink + tl.sum(weight, 0)
            sums = sums * shrink + tl.sum(weight[:, None] * result, 0)
            best = higher
        result = sums / tl.where(count > 0, total, 1.0)
        tl.store(out + (token.to(tl.int64) * HEADS + head) * DIM + d, result.to(out.dtype.element_ty), mask=d < DIM)
