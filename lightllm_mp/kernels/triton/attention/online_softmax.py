"""The online softmax (Milakov, Gimelshein, arXiv:1805.02867) of all attention kernels, over base-2 exponentials."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def empty_softmax(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Before the first block, float32: maxima [ROWS], sums of exponentials [ROWS], weighted values [ROWS, COLUMNS]."""
    best = tl.full([ROWS], float("-inf"), tl.float32)
    return best, tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)


@triton.jit
def softmax_block(scores, best, total, FACTOR: tl.constexpr, AXIS: tl.constexpr, MAY_BE_EMPTY: tl.constexpr):
    """Folds a block of scores into the maxima and sums along AXIS: the weights exp2(scores * FACTOR - maximum), the
    factor on what was summed before, and the new maxima and sums. FACTOR is positive. MAY_BE_EMPTY: of some rows all
    scores so far may be minus infinity."""
    higher = tl.maximum(best, tl.max(scores, AXIS) * FACTOR)
    top = higher
    if MAY_BE_EMPTY:
        top = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores * FACTOR - tl.expand_dims(top, AXIS))
    shrink = tl.exp2(best - top)
    total = total * shrink + tl.sum(weights, AXIS)
    return weights, shrink, higher, total
