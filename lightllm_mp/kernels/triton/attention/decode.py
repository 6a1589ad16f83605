"""Decode attention: one new token per sequence over a long context. Programs take equal shares of all contexts.

Keys are the rows of the products and query heads the columns: a key head has few query heads, and the matrix
instruction takes eight columns but sixteen rows.

If a context is cut, each part's result goes to memory, and the last program to arrive combines them (`combine.py`).
After each layer the arrival counters are zero again.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout, LayerKV
from lightllm_mp.kernels.triton.attention.combine import finish
from lightllm_mp.kernels.triton.attention.online_softmax import sized_softmax_block, softmax_block, with_sink
from lightllm_mp.kernels.triton.attention.packed_bytes import WHOLE, as_words, even_of, in_range, odd_of, pairs
from lightllm_mp.kernels.triton.attention.schedule import DecodeShares, share_of
from lightllm_mp.kernels.triton.attention.score_transforms import bent, extras, scales_at
from lightllm_mp.kernels.triton.attention.tuned_attention import DecodeBlocks, precision, wide
from lightllm_mp.kernels.triton.block_sizes import dot_block, next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel, wait_for_inputs

PARTS_EACH = 32
"""The number of partial results of one head that a warp combines at a time."""
LEAST_GROUP = 8
"""Columns of a matrix instruction."""


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
            sinks=more.sinks,
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
            GROUP_BLOCK=max(LEAST_GROUP, few),
            DIM=layout.head_dim,
            DIM_BLOCK=dot_block(layout.head_dim) if how.kind == WHOLE else 2 * dot_block(layout.head_dim // 2),
            WINDOW=layout.window,
            READ=more.read,
            FACTOR=more.factor,
            CAP=more.cap,
            SLOPED=more.sloped,
            SUNK=more.sunk,
            LEFT=more.left,
            KIND=how.kind,
            OFFSET=how.offset,
            SMALL=how.factor,
            EVEN=how.even,
            ODD=how.odd,
            KEYS=blocks.keys,
            START=blocks.start,
            FEW=few,
            PARTS=max(1, PARTS_EACH * blocks.warps // few),
            PRECISION=precision(q.dtype),
            WIDE=wide(kv.keys),
            READY=shares.ready,
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
    sinks,
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
    SUNK: tl.constexpr,
    LEFT: tl.constexpr,
    KIND: tl.constexpr,
    OFFSET: tl.constexpr,
    SMALL: tl.constexpr,
    EVEN: tl.constexpr,
    ODD: tl.constexpr,
    KEYS: tl.constexpr,
    START: tl.constexpr,
    FEW: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    READY: tl.constexpr,
    EARLY: tl.constexpr,
):
    if not READY:
        wait_for_inputs(EARLY)
    kv_head, p = tl.program_id(0), tl.program_id(1)
    begins = plan + programs + 1
    total = tl.load(plan, cache_modifier=".cg")
    i = tl.load(plan + 1 + p, cache_modifier=".cg")
    begin, after, length, row, token = _sequence(i, sequences, begins, context, rows, seq_start)
    at, end = share_of(p, total, programs)
    if READY:
        wait_for_inputs(EARLY)

    GROUP: tl.constexpr = HEADS // KV_HEADS
    EACH: tl.constexpr = 2 if KIND else 1  # elements of a word
    LIKE: tl.constexpr = tl.float16 if KIND and PRECISION != "ieee" else q.dtype.element_ty
    if KIND:
        keys, values = as_words(keys), as_words(values)
    g, d, n = tl.arange(0, GROUP_BLOCK), tl.arange(0, DIM_BLOCK // EACH), tl.arange(0, KEYS)
    inside = d[None, :] < DIM // EACH
    of_group = (g < GROUP)[None, :] & (d < DIM // EACH)[:, None]
    head = kv_head * GROUP + g
    slope = tl.zeros([GROUP_BLOCK], tl.float32)
    if SLOPED:
        slope = tl.load(slopes + head, mask=g < GROUP, other=0.0)
    if SUNK:
        all_sinks = tl.load(sinks + head, mask=g < GROUP, other=0.0)
    while at < end:
        stop = tl.minimum(after, end)
        first_block, last_block = tl.maximum(at - begin - START, 0), stop - begin - START
        if first_block < last_block:
            line = slot_table + row.to(tl.int64) * table_stride
            at_query = q + (token * HEADS + head[None, :]) * DIM + EACH * d[:, None]
            query = tl.load(at_query, mask=of_group, other=0.0)
            small = LEFT * 1.0
            if KIND:
                odd_query = tl.load(at_query + 1, mask=of_group, other=0.0)
                if PRECISION != "ieee":
                    query, odd_query, small = in_range(query, odd_query)
                    small *= SMALL * LEFT
            hidden = 0
            if WINDOW:
                hidden = tl.maximum(length - WINDOW, 0) // KEYS
            best = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
            weight_sums = tl.zeros([KEYS, GROUP_BLOCK], tl.float32)  # summed at the end
            sums = tl.zeros([DIM_BLOCK // EACH, GROUP_BLOCK], tl.float32)
            none = tl.zeros([KEYS, GROUP_BLOCK], tl.float32)
            if KIND:
                odd_sums = tl.zeros([DIM_BLOCK // EACH, GROUP_BLOCK], tl.float32)
            if OFFSET > 0.0:
                extra = tl.zeros([16, GROUP_BLOCK], tl.float32)
                none -= OFFSET * (tl.sum(query.to(tl.float32), 0) + tl.sum(odd_query.to(tl.float32), 0))[None, :]
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
                    scores = tl.dot(even_of(k, LIKE, KIND, EVEN), query, none, input_precision=PRECISION)
                    scores = tl.dot(odd_of(k, LIKE, KIND, ODD), odd_query, scores, input_precision=PRECISION)
                else:
                    scores = tl.dot(k.to(LIKE), query, input_precision=PRECISION)
                if READ:
                    of_key, of_value = scales_at(key_scales, value_scales, slot, kv_head, seen, KV_HEADS, READ)
                    scores *= (small * of_key)[:, None]
                scores = bent(scores, (key - length + 1)[:, None], slope[None, :], FACTOR, CAP, SLOPED)
                scores = tl.where(seen[:, None], scores, float("-inf"))
                if READ:
                    weights, shrink, best = sized_softmax_block(scores, of_value[:, None], best, 0)
                else:
                    weights, shrink, best = softmax_block(scores, best, LEFT, 0, False)
                weight_sums = weight_sums * shrink[None, :] + weights
                if READ:
                    weights *= of_value[:, None]
                place = (slot[None, :] * KV_HEADS + kv_head) * (DIM // EACH) + d[:, None]
                v = tl.load(values + place, mask=seen[None, :] & (d < DIM // EACH)[:, None], other=0)
                weights = weights.to(LIKE)
                if KIND:
                    even, odd = even_of(v, LIKE, KIND, EVEN), odd_of(v, LIKE, KIND, ODD)
                    sums = tl.dot(even, weights, sums * shrink[None, :], input_precision=PRECISION)
                    odd_sums = tl.dot(odd, weights, odd_sums * shrink[None, :], input_precision=PRECISION)
                else:
                    sums = tl.dot(v.to(LIKE), weights, sums * shrink[None, :], input_precision=PRECISION)
                if OFFSET > 0.0:
                    offsets = tl.full([16, KEYS], OFFSET, LIKE)
                    extra = tl.dot(offsets, weights, extra * shrink[None, :], input_precision=PRECISION)
            if OFFSET > 0.0:
                sums -= tl.max(extra, 0)[None, :]
                odd_sums -= tl.max(extra, 0)[None, :]
            total_weight = tl.sum(weight_sums, 0)
            result = tl.trans(sums)
            if KIND:
                result = SMALL * tl.interleave(result, tl.trans(odd_sums))
            if SUNK:  # the program with a context's first block adds them
                sink = tl.where(first_block == 0, all_sinks, float("-inf"))
                best, total_weight, shrink = with_sink(best, total_weight, sink)
                result *= shrink[:, None]
            finish(
                partial, logsum, arrived, out, result / total_weight[:, None], best + tl.log2(total_weight),
                p, i, token, kv_head, KV_HEADS, total, programs, begin + START, after,
                HEADS, GROUP, GROUP_BLOCK, DIM, DIM_BLOCK, FEW, PARTS,
            )  # fmt: skip
        at = stop
        i += 1
        begin, after, length, row, token = _sequence(i, sequences, begins, context, rows, seq_start)


@triton.jit
def _sequence(i, sequences, begins, context, rows, seq_start):
    """Where sequence i and the next one begin in the queue, and the sequence's length, row, and token (int64);
    undefined if there is no such sequence. Loads bypass the L1 cache, which may be older than this step if the kernel
    has not waited for the previous one."""
    i = tl.minimum(i, sequences - 1)
    begin, after = tl.load(begins + i, cache_modifier=".cg"), tl.load(begins + i + 1, cache_modifier=".cg")
    length, row = tl.load(context + i, cache_modifier=".cg"), tl.load(rows + i, cache_modifier=".cg")
    return begin, after, length, row, tl.load(seq_start + i, cache_modifier=".cg").to(tl.int64)
