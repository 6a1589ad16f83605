"""Decode attention: single new tokens over long contexts. Programs take equal shares of all contexts together.

Where a context is cut, each part's result goes to memory, and the last program to arrive combines them (`combine.py`).
The arrival counters are zero again after each layer.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout, LayerKV
from lightllm_mp.kernels.triton.attention.combine import finish
from lightllm_mp.kernels.triton.attention.online_softmax import empty_softmax, softmax_block
from lightllm_mp.kernels.triton.attention.packed_bytes import WHOLE, as_words, even_of, odd_of, pairs
from lightllm_mp.kernels.triton.attention.schedule import DecodeShares, share_of
from lightllm_mp.kernels.triton.attention.score_transforms import bent, extras, scales_at
from lightllm_mp.kernels.triton.attention.tuned_attention import DecodeBlocks, precision, wide
from lightllm_mp.kernels.triton.block_sizes import dot_block, next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel, wait_for_inputs

PARTS_EACH = 64
"""Partial results of one head that are combined at a time."""


def attend(
    q: Tensor, kv: LayerKV, out: Tensor, batch: Batch, layout: HeadLayout, blocks: DecodeBlocks, shares: DecodeShares
) -> None:
    """Fills the rows of `out` that belong to sequences with one new token."""
    group = layout.heads // layout.kv_heads
    few = next_power_of_2(group)
    more, how = extras(q, kv, layout), pairs(kv.keys, q.dtype)
    _part_kernel.launch(
        (layout.kv_heads, shares.programs, 1),
        _part_kernel.arguments(
            q=q,
            keys=kv.keys,
            values=kv.values,
            key_scales=more.key_scales,
            value_scales=more.value_scales,
            slopes=more.slopes,
            plan=shares.plan,
            partial=shares.partial,
            logsum=shares.logsum,
            arrived=shares.arrived,
            out=out,
            seq_start=batch.seq_start,
            context=batch.context,
            rows=batch.rows,
            slot_table=batch.slot_table,
            table_stride=batch.slot_table.stride(0),
            sequences=batch.sequences,
            programs=shares.programs,
            HEADS=layout.heads,
            KV_HEADS=layout.kv_heads,
            GROUP_BLOCK=dot_block(group),
            DIM=layout.head_dim,
            DIM_BLOCK=dot_block(layout.head_dim) if how.kind == WHOLE else 2 * dot_block(layout.head_dim // 2),
            WINDOW=layout.window,
            READ=more.read,
            FACTOR=more.factor,
            CAP=more.cap,
            SLOPED=more.sloped,
            LEFT=more.left,
            KIND=how.kind,
            PTX=how.ptx,
            SHIFT=how.shift,
            KEYS=blocks.keys,
            START=blocks.start,
            FEW=few,
            PARTS=max(1, PARTS_EACH // few),
            PRECISION=precision(q.dtype),
            WIDE=wide(kv.keys),
        ),
        warps=blocks.warps,
        stages=blocks.stages,
    )


@kernel(numbers=["table_stride", "sequences", "programs"], waits=True)
def _part_kernel(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    slopes,
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
    WINDOW: tl.constexpr,
    READ: tl.constexpr,
    FACTOR: tl.constexpr,
    CAP: tl.constexpr,
    SLOPED: tl.constexpr,
    LEFT: tl.constexpr,
    KIND: tl.constexpr,
    PTX: tl.constexpr,
    SHIFT: tl.constexpr,
    KEYS: tl.constexpr,
    START: tl.constexpr,
    FEW: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_inputs(EARLY)
    kv_head, p = tl.program_id(0), tl.program_id(1)
    begins = plan + programs + 1
    total = tl.load(plan)
    i = tl.load(plan + 1 + p)
    at, end = share_of(p, total, programs)

    GROUP: tl.constexpr = HEADS // KV_HEADS
    EACH: tl.constexpr = 2 if KIND else 1  # elements of a word
    if KIND:
        keys, values = as_words(keys), as_words(values)
    g, d, n = tl.arange(0, GROUP_BLOCK), tl.arange(0, DIM_BLOCK // EACH), tl.arange(0, KEYS)
    inside = d[None, :] < DIM // EACH
    of_group = (g[:, None] < GROUP) & inside
    head = kv_head * GROUP + g
    slope = tl.zeros([GROUP_BLOCK], tl.float32)
    if SLOPED:
        slope = tl.load(slopes + head, mask=g < GROUP, other=0.0)
    while at < end:
        begin, after = tl.load(begins + i), tl.load(begins + i + 1)
        stop = tl.minimum(after, end)
        first_block, last_block = tl.maximum(at - begin - START, 0), stop - begin - START
        if first_block < last_block:
            length = tl.load(context + i)
            line = slot_table + tl.load(rows + i).to(tl.int64) * table_stride
            token = tl.load(seq_start + i).to(tl.int64)
            at_query = q + (token * HEADS + head[:, None]) * DIM + EACH * d[None, :]
            query = tl.load(at_query, mask=of_group, other=0.0)
            if KIND:
                odd_query = tl.load(at_query + 1, mask=of_group, other=0.0)
            hidden = 0
            if WINDOW:
                hidden = tl.maximum(length - WINDOW, 0) // KEYS
            best, total_weight, sums = empty_softmax(GROUP_BLOCK, DIM_BLOCK // EACH)
            if KIND:
                odd_sums = tl.zeros([GROUP_BLOCK, DIM_BLOCK // EACH], tl.float32)
            for block in range(first_block + hidden, last_block + hidden):
                key = block * KEYS + n
                seen = key < length
                if WINDOW:
                    seen &= key >= length - WINDOW
                slot = tl.load(line + key, mask=seen, other=0)
                if WIDE:
                    slot = slot.to(tl.int64)
                place = (slot[:, None] * KV_HEADS + kv_head) * (DIM // EACH) + d[None, :]
                there = seen[:, None] & inside
                k = tl.load(keys + place, mask=there, other=0)
                if KIND:
                    even, odd = even_of(k, query.dtype, KIND, PTX), odd_of(k, query.dtype, KIND, PTX, SHIFT)
                    scores = tl.dot(query, tl.trans(even), input_precision=PRECISION)
                    scores = tl.dot(odd_query, tl.trans(odd), scores, input_precision=PRECISION)
                else:
                    scores = tl.dot(query, tl.trans(k.to(query.dtype)), input_precision=PRECISION)
                if READ:
                    scores *= scales_at(key_scales, slot, kv_head, seen, KV_HEADS, READ)[None, :]
                scores = bent(scores, (key - length + 1)[None, :], slope[:, None], FACTOR, CAP, SLOPED)
                scores = tl.where(seen[None, :], scores, float("-inf"))
                weights, shrink, best, total_weight = softmax_block(scores, best, total_weight, LEFT, 1, False)
                if READ:
                    weights *= scales_at(value_scales, slot, kv_head, seen, KV_HEADS, READ)[None, :]
                v = tl.load(values + place, mask=there, other=0)
                weights = weights.to(query.dtype)
                if KIND:
                    even, odd = even_of(v, query.dtype, KIND, PTX), odd_of(v, query.dtype, KIND, PTX, SHIFT)
                    sums = tl.dot(weights, even, sums * shrink[:, None], input_precision=PRECISION)
                    odd_sums = tl.dot(weights, odd, odd_sums * shrink[:, None], input_precision=PRECISION)
                else:
                    sums = tl.dot(weights, v.to(query.dtype), sums * shrink[:, None], input_precision=PRECISION)
            if KIND:
                sums = tl.interleave(sums, odd_sums)
            finish(
                partial, logsum, arrived, out, sums / total_weight[:, None], best + tl.log2(total_weight),
                p, i, token, kv_head, KV_HEADS, total, programs, begin + START, after,
                HEADS, GROUP, GROUP_BLOCK, DIM, DIM_BLOCK, FEW, PARTS,
            )  # fmt: skip
        at = stop
        i += 1
