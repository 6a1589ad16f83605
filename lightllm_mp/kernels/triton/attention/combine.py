"""Combines the partial results of a context that several programs share. The order is always that of the context, so
the result does not depend on which program is last."""

from __future__ import annotations

import triton
import triton.language as tl

from lightllm_mp.kernels.triton.attention.online_softmax import empty_softmax, softmax_block
from lightllm_mp.kernels.triton.attention.schedule import owner_of


@triton.jit
def finish(
    partial,
    logsum,
    arrived,
    out,
    result,
    weight,
    p,
    i,
    token,
    column,
    columns,
    total,
    programs,
    first_unit,
    after,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    FEW: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Program p has the result [GROUP_BLOCK, DIM_BLOCK] of its part of sequence i, whose keys are the units
    [first_unit, after) of the queue, for the heads of one column of programs. If the part is the whole context, the
    result is stored directly."""
    g, d = tl.arange(0, GROUP_BLOCK), tl.arange(0, DIM_BLOCK)
    head = column * GROUP + g
    inside = (g < GROUP) & (head < HEADS)
    wide = inside[:, None] & (d < DIM)[None, :]
    line = out + token * (HEADS * DIM)
    first = owner_of(first_unit, total, programs)
    pieces = owner_of(after - 1, total, programs) - first + 1
    if pieces == 1:
        tl.store(line + head[:, None] * DIM + d[None, :], result.to(out.dtype.element_ty), mask=wide)
    else:
        place = (p + i).to(tl.int64) * HEADS + head
        tl.store(partial + place[:, None] * DIM + d[None, :], result, mask=wide)
        tl.store(logsum + place, weight, mask=inside)
        tl.debug_barrier()  # all threads store before one thread counts
        arrivals = arrived + i * columns + column
        if tl.atomic_add(arrivals, 1, sem="acq_rel") == pieces - 1:
            for some in range(0, GROUP, FEW):
                _combine(
                    partial, logsum, line, first + i, pieces, column * GROUP + some,
                    tl.minimum(column * GROUP + GROUP, HEADS), HEADS, DIM, DIM_BLOCK, FEW, PARTS,
                )  # fmt: skip
            tl.store(arrivals, 0)  # for the next layer


@triton.jit
def _combine(
    partial,
    logsum,
    out,
    first,
    pieces,
    head,
    heads,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
    FEW: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Weights the parts of the heads [head, heads), at most FEW, by their sums. Loads bypass the L1 cache, because
    other multiprocessors wrote the parts."""
    part, g, d = tl.arange(0, PARTS)[:, None], tl.arange(0, FEW)[None, :], tl.arange(0, DIM_BLOCK)
    best, total, sums = empty_softmax(FEW, DIM_BLOCK)
    for base in range(0, pieces, PARTS):
        place = (first + base + part).to(tl.int64) * HEADS + tl.minimum(head + g, heads - 1)
        there = tl.broadcast_to(base + part < pieces, [PARTS, FEW])
        weight = tl.load(logsum + place, mask=there, other=float("-inf"), cache_modifier=".cg")
        wide = there[:, :, None] & (d < DIM)[None, None, :]
        at = partial + place[:, :, None] * DIM + d[None, None, :]
        result = tl.load(at, mask=wide, other=0.0, cache_modifier=".cg")
        weight, shrink, best = softmax_block(weight, best, 1.0, 0, False)
        total = total * shrink + tl.sum(weight, 0)
        sums = sums * shrink[:, None] + tl.sum(weight[:, :, None] * result, 0)
    own = head + tl.arange(0, FEW)[:, None]
    inside = (own < heads) & (d < DIM)[None, :]
    tl.store(out + own * DIM + d[None, :], (sums / total[:, None]).to(out.dtype.element_ty), mask=inside)
