"""Draws from rows with top-k, top-p or min-p: finds the least score that is kept, without sorting, then draws.

A score is taken as its distance below the row's largest. A limit is the largest distance such that nearer entries weigh
too little: fewer than k entries, or less than top_p of the mass. It is searched among the bit patterns of floats, which
have the order of the floats. One program takes a row. It first reads the FEW groups of ids with the largest logits,
which nearly always hold all that is kept; if not, it reads the row about ten times (`large_row.py`). The order of
sums depends on the vocabulary alone, so a cut is a function of the row. Distances beyond 128 count as 128: such ids
have no mass and no chance.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.triton.launch import kernel
from lightllm_mp.kernels.triton.sampling.large_row import DEEPEST, ENDLESS, cut_of_row, draw_of_row, farthest
from lightllm_mp.kernels.triton.sampling.noise import (
    INFINITE,
    LOWEST,
    first_largest,
    log_exponential,
    noise_keys,
    score_scale,
    value,
)
from lightllm_mp.kernels.triton.sampling.rules import (
    BAN_UNTIL,
    FLAGS,
    IS_ADJUSTED,
    IS_CUT,
    REACH,
    TOP_K,
    TOP_P,
    WORDS,
    SampledSequences,
)
from lightllm_mp.kernels.triton.sampling.sampler import GROUP, RowScan

FEW = 128
"""Groups that are read first."""
BLOCK = 4096
"""Ids read at a time, if the whole row must be read."""
SPARE = 4096
"""Ids among which the search of a whole row ends."""


def draw_cut(
    scan: RowScan, logits: Tensor, work: Tensor, table: Tensor, sequences: SampledSequences, ids: Tensor
) -> None:
    """Writes to `ids` int64 [n] the draws of rows that have limits. The other arguments are those of `RowScan`."""
    layout, n = scan.layout, logits.shape[0]
    few, spare_size = min(FEW, layout.groups_block), min(SPARE, layout.vocab_block)
    _cut_kernel.launch(
        (n, 1, 1),
        _cut_kernel.arguments(
            logits=logits,
            work=work,
            rules=table,
            rows=sequences.rows,
            positions=sequences.positions,
            partial=scan.partial,
            groups=scan.groups,
            order=torch.empty((n, few), dtype=torch.int32, device=ids.device),
            spare=logits.new_empty((n, spare_size)),
            ids=ids,
            rows_at=sequences.rows_at,
            positions_at=sequences.positions_at,
            count=n,
            VOCAB=layout.vocab,
            CHUNKS=layout.chunks,
            CHUNKS_BLOCK=layout.chunks_block,
            GROUP=GROUP,
            GROUPS_BLOCK=layout.groups_block,
            FEW=few,
            BLOCK=min(BLOCK, layout.vocab_block),
            SPARE=spare_size,
        ),
        warps=16,
    )


@kernel(numbers=["rows_at", "positions_at", "count"])
def _cut_kernel(
    logits,
    work,
    rules,
    rows,
    positions,
    partial,
    groups,
    order,
    spare,
    ids,
    rows_at,
    positions_at,
    count,
    VOCAB: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNKS_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS_BLOCK: tl.constexpr,
    FEW: tl.constexpr,
    BLOCK: tl.constexpr,
    SPARE: tl.constexpr,
):
    GROUPS: tl.constexpr = (VOCAB + GROUP - 1) // GROUP
    line = tl.program_id(0)
    row = tl.load(rows + rows_at + line)
    position = tl.load(positions + positions_at + line)
    rule = rules + row * WORDS
    flags = tl.load(rule + FLAGS)
    if (flags & IS_CUT) != 0:
        source = logits + line.to(tl.int64) * VOCAB
        if ((flags & IS_ADJUSTED) != 0) | (position < tl.load(rule + BAN_UNTIL)):
            source = work + line.to(tl.int64) * VOCAB
        c = tl.arange(0, CHUNKS_BLOCK)
        place, stride = partial + line * CHUNKS + c, count * CHUNKS
        tops = tl.load(place + 2 * stride, mask=c < CHUNKS, other=LOWEST)
        top = tl.max(tops, 0)
        if (top > LOWEST) & (top < INFINITE):
            best, scale = value(top), score_scale(rule)
            sums = tl.load(place + 4 * stride, mask=c < CHUNKS, other=0).to(tl.float32, bitcast=True)
            mass = tl.sum(tl.where(tops > LOWEST, sums * tl.exp((value(tops) - best) * scale), 0.0), 0)

            tops_of_groups = groups + line.to(tl.int64) * GROUPS
            at, outside = _best_groups(tops_of_groups, order + line * FEW, best, GROUPS, GROUPS_BLOCK, FEW)
            at = tl.reshape(at[:, None] * GROUP + tl.arange(0, GROUP)[None, :], [FEW * GROUP])
            far = (best - tl.load(source + at, mask=at < VOCAB, other=float("-inf"))) * scale
            outside *= scale
            cut, by_k = _cut_of_few(far, mass, rule)
            key0, key1 = noise_keys(rule, position)
            if (cut < outside) & (by_k < outside):
                noisy = -far - log_exponential(at, key0, key1)
                chosen = first_largest(noisy, at, (far <= cut) & (at < VOCAB))
            else:
                near = tl.where(far < outside, tl.where(by_k > 0.0, 1.0, tl.exp(-far)), 0.0)
                known = tl.minimum(outside.to(tl.int32, bitcast=True), DEEPEST)
                spare += line.to(tl.int64) * SPARE
                near = tl.sum(near, 0)
                cut = cut_of_row(source, best, scale, mass, known, near, rule, spare, VOCAB, BLOCK, SPARE)
                chosen = draw_of_row(source, best, scale, cut, key0, key1, VOCAB, BLOCK)
            tl.store(ids + line, chosen.to(tl.int64))


@triton.jit
def _best_groups(groups, order, best, GROUPS: tl.constexpr, GROUPS_BLOCK: tl.constexpr, FEW: tl.constexpr):
    """int32 [FEW]: the groups with the largest logits; and the least distance of all others below `best`."""
    rank = tl.arange(0, FEW)
    if GROUPS <= FEW:
        return rank, tl.full([], float("inf"), tl.float32)
    else:
        g = tl.arange(0, GROUPS_BLOCK)
        far = best - tl.load(groups + g, mask=g < GROUPS, other=float("-inf"))
        last = tl.minimum(farthest(far, tl.full([GROUPS_BLOCK], 1.0, tl.float32), FEW), ENDLESS)
        last = last.to(tl.float32, bitcast=True)
        nearer, equal = far < last, (far == last) & (g < GROUPS)
        ranks = tl.cumsum(nearer.to(tl.int32) + (equal.to(tl.int32) << 16), 0)
        ranks = tl.where(nearer, ranks & 0xFFFF, tl.sum(nearer.to(tl.int32), 0) + (ranks >> 16)) - 1
        tl.store(order + ranks, g, mask=(nearer | equal) & (ranks < FEW))
        tl.debug_barrier()  # the next loads read what other threads store
        return tl.load(order + rank), last


@triton.jit
def _cut_of_few(far, mass, rule):
    """The cut, and the cut of top-k alone (0: no top-k), from the distances `far` of some scores."""
    top_k, top_p = tl.load(rule + TOP_K), tl.load(rule + TOP_P).to(tl.float32, bitcast=True)
    last, by_k, left = tl.full([], DEEPEST, tl.int32), tl.zeros([], tl.float32), mass
    weights = tl.exp(-far)
    if top_k > 0:
        last = tl.minimum(farthest(far, tl.where(far >= 0.0, 1.0, 0.0), top_k.to(tl.float32)), last)
        by_k = last.to(tl.float32, bitcast=True)
        left = tl.sum(tl.where(far <= by_k, weights, 0.0), 0)
    if top_p < 1.0:
        last = tl.minimum(farthest(far, weights, left * top_p), last)
    return tl.minimum(last.to(tl.float32, bitcast=True), tl.load(rule + REACH).to(tl.float32, bitcast=True)), by_k
