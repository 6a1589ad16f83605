"""The online softmax (Milakov, Gimelshein, arXiv:1805.02867) of all attention kernels, with base-2 exponentials."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def empty_softmax(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The state before the first block, float32: maxima [ROWS], sums of exponentials [ROWS], weighted values [ROWS,
    COLUMNS]."""
    best = tl.full([ROWS], float("-inf"), tl.float32)
    return best, tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)


@triton.jit
def softmax_block(scores, best, FACTOR: tl.constexpr, AXIS: tl.constexpr, MAY_BE_EMPTY: tl.constexpr):
    """Folds a block of scores into the maxima along AXIS. Returns the weights exp2(scores * FACTOR - maximum), the
    factor on the previous sums, and the new maxima. FACTOR is positive. MAY_BE_EMPTY: all scores of a row so far may be
    minus infinity."""
    higher = tl.maximum(best, tl.max(scores, AXIS) * FACTOR)
    top = higher
    if MAY_BE_EMPTY:
        top = tl.where(higher == float("-inf"), 0.0, higher)
    return tl.exp2(scores * FACTOR - tl.expand_dims(top, AXIS)), tl.exp2(best - top), higher


@triton.jit
def with_sink(best, total, sink):
    """Adds a score without a value, `sink` in nats, after the last block. Returns the new maxima, the new sums, and the
    factor on the weighted values. Minus infinity adds nothing."""
    sink *= 1.4426950408889634  # log2(e)
    top = tl.maximum(best, sink)
    shrink = tl.exp2(best - top)
    return top, total * shrink + tl.exp2(sink - top), shrink


@triton.jit
def sized_softmax_block(scores, sizes, best, AXIS: tl.constexpr):
    """As `softmax_block`, for weights that are then multiplied by `sizes` >= 0 (broadcast to the scores) and rounded to
    float16. The maxima are those of the products, with sizes rounded to powers of two, so that the largest product is
    about 2^14 for sizes of any magnitude."""
    exponents = tl.maximum((sizes.to(tl.int32, bitcast=True) >> 23).to(tl.float32), 103.0)  # log2(sizes) + 127
    higher = tl.maximum(best, tl.max(scores + exponents, AXIS) - 141.0)
    return tl.exp2(scores - tl.expand_dims(higher, AXIS)), tl.exp2(best - higher), higher
