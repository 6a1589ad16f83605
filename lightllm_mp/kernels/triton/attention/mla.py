"""Attention over latent keys (DeepSeek-V2): one vector per token serves all heads; its first part is the value too.

A kernel reads each block of keys once and uses it in both products. It holds the value part and the rest of a vector
apart (512 and 64, for example), because one block of the next power of two would waste more.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout
from lightllm_mp.kernels.triton.attention.combine import finish
from lightllm_mp.kernels.triton.attention.online_softmax import empty_softmax, softmax_block
from lightllm_mp.kernels.triton.attention.schedule import DecodeShares, share_of
from lightllm_mp.kernels.triton.attention.score_transforms import LOG2E
from lightllm_mp.kernels.triton.attention.tuned_attention import DecodeBlocks, PrefillBlocks, precision, wide
from lightllm_mp.kernels.triton.block_sizes import dot_block, next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel

FEW_HEADS, PARTS_EACH = 8, 4
"""The numbers of heads and partial results that are combined at a time."""


def attend_single(
    q: Tensor,
    keys: Tensor,
    out: Tensor,
    batch: Batch,
    layout: HeadLayout,
    heads: int,
    blocks: DecodeBlocks,
    shares: DecodeShares,
) -> None:
    """Fills the rows of `out` that belong to sequences with one new token. A program takes `heads` heads."""
    rest = layout.head_dim - layout.values
    _single_kernel.launch(
        (triton.cdiv(layout.heads, heads), shares.programs, 1),
        _single_kernel.arguments(
            q=q,
            keys=keys,
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
            VALUE=layout.values,
            VALUE_BLOCK=dot_block(layout.values),
            REST=rest,
            REST_BLOCK=dot_block(rest),
            SCALE=layout.scale * LOG2E,
            PRECISION=precision(q.dtype),
            WIDE=wide(keys),
            GROUP=heads,
            KEYS=blocks.keys,
            START=blocks.start,
            FEW=FEW_HEADS,
            PARTS=PARTS_EACH,
        ),
        warps=blocks.warps,
        stages=blocks.stages,
    )


def tokens_each(layout: HeadLayout, blocks: PrefillBlocks) -> int:
    """The number of new tokens per program of `attend_chunks`."""
    return blocks.queries // _heads_each(layout, blocks)


def attend_chunks(
    q: Tensor, keys: Tensor, out: Tensor, batch: Batch, layout: HeadLayout, blocks: PrefillBlocks, tiles: Tensor
) -> None:
    """Fills the rows of `out` that belong to sequences with more than one new token."""
    heads, rest = _heads_each(layout, blocks), layout.head_dim - layout.values
    _chunks_kernel.launch(
        (triton.cdiv(layout.heads, heads), tiles.shape[0], 1),
        _chunks_kernel.arguments(
            q=q,
            keys=keys,
            out=out,
            tiles=tiles,
            seq_start=batch.seq_start,
            context=batch.context,
            rows=batch.rows,
            slot_table=batch.slot_table,
            table_stride=batch.slot_table.stride(0),
            HEADS=layout.heads,
            VALUE=layout.values,
            VALUE_BLOCK=dot_block(layout.values),
            REST=rest,
            REST_BLOCK=dot_block(rest),
            SCALE=layout.scale * LOG2E,
            PRECISION=precision(q.dtype),
            WIDE=wide(keys),
            GROUP=heads,
            LINES=blocks.queries,
            KEYS=blocks.keys,
        ),
        warps=blocks.warps,
        stages=blocks.stages,
    )


def _heads_each(layout: HeadLayout, blocks: PrefillBlocks) -> int:
    return min(blocks.queries, next_power_of_2(layout.heads))


@kernel(numbers=["table_stride", "sequences", "programs"])
def _single_kernel(
    q,
    keys,
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
    VALUE: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    REST: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    GROUP: tl.constexpr,
    KEYS: tl.constexpr,
    START: tl.constexpr,
    FEW: tl.constexpr,
    PARTS: tl.constexpr,
):
    column, p = tl.program_id(0), tl.program_id(1)
    begins = plan + programs + 1
    total = tl.load(plan)
    i = tl.load(plan + 1 + p)
    at, end = share_of(p, total, programs)
    head = column * GROUP + tl.arange(0, GROUP)
    while at < end:
        begin, after = tl.load(begins + i), tl.load(begins + i + 1)
        stop = tl.minimum(after, end)
        first_block, last_block = tl.maximum(at - begin - START, 0), stop - begin - START
        if first_block < last_block:
            length = tl.load(context + i)
            slots = slot_table + tl.load(rows + i).to(tl.int64) * table_stride
            token = tl.load(seq_start + i).to(tl.int64)
            place = token * HEADS + head
            query, query_rest = _query(q, place, head < HEADS, VALUE, VALUE_BLOCK, REST, REST_BLOCK)
            position = tl.zeros([GROUP], tl.int32) + length - 1
            best, weight, sums = empty_softmax(GROUP, VALUE_BLOCK)
            best, weight, sums = _walk(
                first_block * KEYS, tl.minimum(last_block * KEYS, length), query, query_rest, keys, slots,
                position, length, best, weight, sums,
                VALUE, VALUE_BLOCK, REST, REST_BLOCK, SCALE, KEYS, PRECISION, WIDE, True,
            )  # fmt: skip
            finish(
                partial, logsum, arrived, out, sums / weight[:, None], best + tl.log2(weight),
                p, i, token, column, tl.num_programs(0), total, programs, begin + START, after,
                HEADS, GROUP, GROUP, VALUE, VALUE_BLOCK, FEW, PARTS,
            )  # fmt: skip
        at = stop
        i += 1


@kernel(numbers=["table_stride"])
def _chunks_kernel(
    q,
    keys,
    out,
    tiles,
    seq_start,
    context,
    rows,
    slot_table,
    table_stride,
    HEADS: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    REST: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    GROUP: tl.constexpr,
    LINES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Row r of a program is head r % GROUP of its token r // GROUP."""
    column, t = tl.program_id(0), tl.program_id(1)
    i = tl.load(tiles + 2 * t)
    if i >= 0:
        start, length = tl.load(seq_start + i), tl.load(context + i)
        new = tl.load(seq_start + i + 1) - start
        r = tl.arange(0, LINES)
        before = tl.load(tiles + 2 * t + 1) * (LINES // GROUP)
        line, head = before + r // GROUP, column * GROUP + r % GROUP
        there = (line < new) & (head < HEADS)
        place = (start + line).to(tl.int64) * HEADS + head
        query, query_rest = _query(q, place, there, VALUE, VALUE_BLOCK, REST, REST_BLOCK)
        slots = slot_table + tl.load(rows + i).to(tl.int64) * table_stride
        first = length - new + before
        high = tl.minimum(first + LINES // GROUP, length)
        shut = (first + 1) // KEYS * KEYS
        best, weight, sums = empty_softmax(LINES, VALUE_BLOCK)
        position = length - new + line
        best, weight, sums = _walk(
            0, shut, query, query_rest, keys, slots, position, length, best, weight, sums,
            VALUE, VALUE_BLOCK, REST, REST_BLOCK, SCALE, KEYS, PRECISION, WIDE, False,
        )  # fmt: skip
        best, weight, sums = _walk(
            shut, high, query, query_rest, keys, slots, position, length, best, weight, sums,
            VALUE, VALUE_BLOCK, REST, REST_BLOCK, SCALE, KEYS, PRECISION, WIDE, True,
        )  # fmt: skip
        d = tl.arange(0, VALUE_BLOCK)
        result = (sums / weight[:, None]).to(out.dtype.element_ty)
        tl.store(out + place[:, None] * VALUE + d[None, :], result, mask=there[:, None] & (d < VALUE)[None, :])


@triton.jit
def _query(
    q,
    place,
    there,
    VALUE: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    REST: tl.constexpr,
    REST_BLOCK: tl.constexpr,
):
    """Both parts of the queries at `place`."""
    d, e = tl.arange(0, VALUE_BLOCK), tl.arange(0, REST_BLOCK)
    lines = q + place[:, None] * (VALUE + REST)
    front = tl.load(lines + d[None, :], mask=there[:, None] & (d < VALUE)[None, :], other=0.0)
    return front, tl.load(lines + VALUE + e[None, :], mask=there[:, None] & (e < REST)[None, :], other=0.0)


@triton.jit
def _walk(
    start,
    end,
    query,
    query_rest,
    keys,
    slots,
    position,
    length,
    best,
    weight,
    sums,
    VALUE: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    REST: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    SCALE: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Folds the keys [start, end) into the running maximum, sum of exponentials and weighted values of each row."""
    n, d, e = tl.arange(0, KEYS), tl.arange(0, VALUE_BLOCK)[None, :], tl.arange(0, REST_BLOCK)[None, :]
    for base in range(start, end, KEYS):
        key = base + n
        within = key < length
        slot = tl.load(slots + key, mask=within, other=0)
        if WIDE:
            slot = slot.to(tl.int64)
        at = keys + slot[:, None] * (VALUE + REST)
        k = tl.load(at + d, mask=within[:, None] & (d < VALUE), other=0.0)
        k_rest = tl.load(at + VALUE + e, mask=within[:, None] & (e < REST), other=0.0)
        scores = tl.dot(query, tl.trans(k), input_precision=PRECISION)
        scores = tl.dot(query_rest, tl.trans(k_rest), scores, input_precision=PRECISION)
        if MASKED:
            seen = (key[None, :] <= position[:, None]) & within[None, :]
            scores = tl.where(seen, scores, float("-inf"))
        weights, shrink, best = softmax_block(scores, best, SCALE, 1, False)
        weight = weight * shrink + tl.sum(weights, 1)
        sums = tl.dot(weights.to(k.dtype), k, sums * shrink[:, None], input_precision=PRECISION)
    return best, weight, sums
