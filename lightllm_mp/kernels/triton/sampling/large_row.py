"""The cut and the draw of a row that keeps many ids: one program reads the whole row several times.

Distances are those of truncation.py. Each pass quarters the range of bit patterns that holds the cut, until few enough
ids are left to be gathered and searched in place.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightllm_mp.kernels.triton.sampling.noise import first_largest, log_exponential
from lightllm_mp.kernels.triton.sampling.rules import REACH, TOP_K, TOP_P

DEEPEST = tl.constexpr(0x43000000)
"""The bits of 128."""
ENDLESS = tl.constexpr(0x7F800000)
"""The bits of infinity."""
NARROW = tl.constexpr(1 << 17)
"""A range of bit patterns, 1/64 of a doubling, that usually holds few enough ids."""


@triton.jit
def farthest(far, weights, target):
    """The bits of the largest distance such that all nearer entries weigh less than `target`, found bit by bit; a word
    beyond ENDLESS if all entries together weigh less."""
    found = tl.zeros([], tl.int32)
    for bit in range(31):
        word = found | (0x40000000 >> bit)
        nearer = tl.where(far < word.to(tl.float32, bitcast=True), weights, 0.0)
        found = tl.where(tl.sum(nearer, 0) < target, word, found)
    return found


@triton.jit
def cut_of_row(
    source,
    best,
    scale,
    mass,
    known,
    near,
    rule,
    spare,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    SPARE: tl.constexpr,
):
    """The largest distance kept. The first limit is at least the bits `known`; nearer entries weigh `near`."""
    top_k, top_p = tl.load(rule + TOP_K), tl.load(rule + TOP_P).to(tl.float32, bitcast=True)
    last, left = tl.full([], DEEPEST, tl.int32), mass
    for limit in range(2):  # a loop: two copies of the code take twice as long to compile
        target, by_mass, wanted = top_k.to(tl.float32), tl.zeros([], tl.float32), top_k > 0
        if limit == 1:
            target, by_mass, wanted = left * top_p, tl.full([], 1.0, tl.float32), top_p < 1.0
        if wanted:
            last = _farthest_of_row(
                source, best, scale, target, known, near, last + 1, by_mass, spare, VOCAB, BLOCK, SPARE
            )
            if limit == 0:
                left = _mass_within(source, best, scale, last.to(tl.float32, bitcast=True), VOCAB, BLOCK)
                known, near = tl.zeros([], tl.int32), tl.zeros([], tl.float32)
    return tl.minimum(last.to(tl.float32, bitcast=True), tl.load(rule + REACH).to(tl.float32, bitcast=True))


@triton.jit
def _farthest_of_row(
    source,
    best,
    scale,
    target,
    low,
    near,
    high,
    by_mass,
    spare,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    SPARE: tl.constexpr,
):
    """`farthest` for a whole row's mass (`by_mass` 1) or number of entries (0), at least `low` and below `high`;
    entries nearer than `low` weigh `near`."""
    width = tl.full([], NARROW, tl.int32)
    while high - low > 1:
        while high - low > width:
            step = tl.maximum((high - low) >> 2, 1)
            first, second, third = low + step, low + ((high - low) >> 1), high - step
            a, b, c = _nearer(
                source,
                best,
                scale,
                first.to(tl.float32, bitcast=True),
                second.to(tl.float32, bitcast=True),
                third.to(tl.float32, bitcast=True),
                by_mass,
                VOCAB,
                BLOCK,
            )
            near = tl.where(c < target, c, tl.where(b < target, b, tl.where(a < target, a, near)))
            low = tl.where(c < target, third, tl.where(b < target, second, tl.where(a < target, first, low)))
            high = tl.where(a >= target, first, tl.where(b >= target, second, tl.where(c >= target, third, high)))
        if high - low > 1:
            begin, end = low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)
            width = tl.full([], 1, tl.int32)
            if _gather(source, best, scale, begin, end, spare, VOCAB, BLOCK, SPARE) <= SPARE:
                far = tl.load(spare + tl.arange(0, SPARE))
                found = farthest(far, tl.exp(-far * by_mass), target - near)
                low = tl.maximum(tl.minimum(found, high - 1), low)
                high = low + 1
    return low


@triton.jit
def _mass_within(source, best, scale, last, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """The mass of a row's entries up to the distance `last`."""
    mass = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB, BLOCK):
        at = start + tl.arange(0, BLOCK)
        far = (best - tl.load(source + at, mask=at < VOCAB, other=float("-inf"))) * scale
        mass += tl.where(far <= last, tl.exp(-far), 0.0)
    return tl.sum(mass, 0)


@triton.jit
def _nearer(source, best, scale, first, second, third, by_mass, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """The mass or number of a row's entries below each of three distances."""
    a, b, c = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB, BLOCK):
        at = start + tl.arange(0, BLOCK)
        far = (best - tl.load(source + at, mask=at < VOCAB, other=float("-inf"))) * scale
        weight = tl.exp(-far * by_mass)
        a += tl.where(far < first, weight, 0.0)
        b += tl.where(far < second, weight, 0.0)
        c += tl.where(far < third, weight, 0.0)
    return tl.sum(a, 0), tl.sum(b, 0), tl.sum(c, 0)


@triton.jit
def _gather(source, best, scale, begin, end, spare, VOCAB: tl.constexpr, BLOCK: tl.constexpr, SPARE: tl.constexpr):
    """Writes the distances from `begin` to below `end` to `spare`, in the order of ids, then infinity. Returns their
    number; if it is more than SPARE, the rest is not written."""
    found = tl.zeros([], tl.int32)
    for start in range(0, VOCAB, BLOCK):
        at = start + tl.arange(0, BLOCK)
        far = (best - tl.load(source + at, mask=at < VOCAB, other=float("-inf"))) * scale
        between = (far >= begin) & (far < end)
        rank = found + tl.cumsum(between.to(tl.int32), 0) - 1
        tl.store(spare + rank, far, mask=between & (rank < SPARE))
        found += tl.sum(between.to(tl.int32), 0)
    rest = tl.arange(0, SPARE)
    tl.store(spare + rest, tl.full([SPARE], float("inf"), tl.float32), mask=rest >= found)
    tl.debug_barrier()  # the next loads read what other threads store
    return found


@triton.jit
def draw_of_row(source, best, scale, cut, key0, key1, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """The id with the largest sum of score and noise, among distances up to `cut`."""
    most = tl.full([BLOCK], float("-inf"), tl.float32)
    ids = tl.arange(0, BLOCK)
    for start in range(0, VOCAB, BLOCK):
        at = start + tl.arange(0, BLOCK)
        far = (best - tl.load(source + at, mask=at < VOCAB, other=float("-inf"))) * scale
        noisy = tl.where(far <= cut, -far - log_exponential(at, key0, key1), float("-inf"))
        ids = tl.where(noisy > most, at, ids)
        most = tl.maximum(most, noisy)
    return first_largest(most, ids, ids < VOCAB)
