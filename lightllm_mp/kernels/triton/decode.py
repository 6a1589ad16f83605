"""Attention of single new tokens over long contexts: every program takes an equal share of all contexts together.

Where a context is cut, each piece's result goes to memory, and the program that finds itself the last to arrive
combines them. The counters of arrivals are zero again after each layer.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout
from lightllm_mp.kernels.triton.launch import Kernel
from lightllm_mp.kernels.triton.schedule import DecodeShares
from lightllm_mp.kernels.triton.tuned import decode_blocks, padded

PARTS_EACH = 64
"""Partial results, of one head each, that are combined at a time."""


def attend(
    q: Tensor, keys: Tensor, values: Tensor, out: Tensor, batch: Batch, layout: HeadLayout, shares: DecodeShares
) -> None:
    """Fills the lines of `out` that belong to sequences with one new token."""
    blocks = decode_blocks(layout.head_dim, q.dtype)
    group = layout.heads // layout.kv_heads
    few = triton.next_power_of_2(group)
    _PART.launch(
        (layout.kv_heads, shares.programs, 1),
        (
            q,
            keys,
            values,
            shares.plan,
            shares.partial,
            shares.logsum,
            shares.arrived,
            out,
            batch.seq_start,
            batch.context,
            batch.rows,
            batch.slot_table,
        ),
        (batch.slot_table.stride(0), batch.sequences, shares.programs),
        (
            layout.heads,
            layout.kv_heads,
            padded(group),
            layout.head_dim,
            padded(layout.head_dim),
            layout.scale * math.log2(math.e),
            layout.window,
            blocks.keys,
            few,
            max(1, PARTS_EACH // few),
            "ieee" if q.dtype == torch.float32 else "tf32",
        ),
        warps=blocks.warps,
        stages=blocks.stages,
    )


@triton.jit(do_not_specialize=["table_stride", "sequences", "programs"])
def _part_kernel(
    q,
    keys,
    values,
    plan,
    partial,
    logsum,
    arrived,
    out,
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
    FEW: tl.constexpr,
    PARTS: tl.constexpr,
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
        token = tl.load(seq_start + i).to(tl.int64)
        query = tl.load(q + (token * HEADS + head[:, None]) * DIM + d[None, :], mask=of_group, other=0.0)
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
            scores = tl.dot(query, tl.trans(k), input_precision=PRECISION)
            scores = tl.where(seen[None, :], scores, float("-inf"))
            higher = tl.maximum(best, tl.max(scores, 1) * SCALE)
            weights = tl.exp2(scores * SCALE - higher[:, None])
            shrink = tl.exp2(best - higher)
            total = total * shrink + tl.sum(weights, 1)
            v = tl.load(values + place, mask=there, other=0.0)
            sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision=PRECISION)
            best = higher
        result = sums / total[:, None]
        line_out = out + token * (HEADS * DIM)
        first = begin // share
        pieces = (tl.load(begins + i + 1) - 1) // share - first + 1
        if pieces == 1:
            tl.store(line_out + head[:, None] * DIM + d[None, :], result.to(out.dtype.element_ty), mask=of_group)
        else:
            place = (p + i).to(tl.int64) * HEADS + head
            tl.store(partial + place[:, None] * DIM + d[None, :], result, mask=of_group)
            tl.store(logsum + place, best + tl.log2(total), mask=g < GROUP)
            tl.debug_barrier()  # all threads have stored before one of them says so
            arrivals = arrived + i * KV_HEADS + kv_head
            if tl.atomic_add(arrivals, 1, sem="acq_rel") == pieces - 1:
                _combine(
                    partial, logsum, line_out, first + i, pieces, kv_head, HEADS, GROUP, DIM, DIM_BLOCK, FEW, PARTS
                )
                tl.store(arrivals, 0)  # for the next layer
        at = stop
        i += 1


@triton.jit
def _combine(
    partial,
    logsum,
    out,
    first,
    pieces,
    kv_head,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    FEW: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Weights the pieces of one group's context by their sums. They come past the L1 cache, from other processors."""
    part, g, d = tl.arange(0, PARTS)[:, None], tl.arange(0, FEW)[None, :], tl.arange(0, DIM_BLOCK)
    best = tl.full([FEW], float("-inf"), tl.float32)
    total = tl.zeros([FEW], tl.float32)
    sums = tl.zeros([FEW, DIM_BLOCK], tl.float32)
    for base in range(0, pieces, PARTS):
        place = (first + base + part).to(tl.int64) * HEADS + kv_head * GROUP + tl.minimum(g, GROUP - 1)
        there = tl.broadcast_to(base + part < pieces, [PARTS, FEW])
        weight = tl.load(logsum + place, mask=there, other=float("-inf"), cache_modifier=".cg")
        wide = there[:, :, None] & (d < DIM)[None, None, :]
        at = partial + place[:, :, None] * DIM + d[None, None, :]
        result = tl.load(at, mask=wide, other=0.0, cache_modifier=".cg")
        higher = tl.maximum(best, tl.max(weight, 0))
        weight = tl.exp2(weight - higher[None, :])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(weight, 0)
        sums = sums * shrink[:, None] + tl.sum(weight[:, :, None] * result, 0)
        best = higher
    head = (kv_head * GROUP + tl.arange(0, FEW))[:, None]
    inside = (tl.arange(0, FEW) < GROUP)[:, None] & (d < DIM)[None, :]
    tl.store(out + head * DIM + d[None, :], (sums / total[:, None]).to(out.dtype.element_ty), mask=inside)


_PART = Kernel(_part_kernel)
