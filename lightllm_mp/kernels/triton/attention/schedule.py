"""Splits attention work among GPU programs on the device. The host does not know lengths, so grids never change.

Decode: the key blocks of all sequences with one new token form one queue, which `programs` programs cut into equal
shares. A unit of the queue is the time of one block. Each sequence has some empty units before its blocks, because the
start of a sequence takes time too: otherwise programs with many short contexts would finish last. Program p writes its
partial result of sequence i to place p + i. Along the queue each partial result increases p or i, so no two share a
place, and `programs + sequences` places suffice.

Prefill: the query blocks ("tiles") of all sequences with more new tokens, at most tokens // block + sequences of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout
from lightllm_mp.kernels.triton.attention.tuned_attention import DecodeBlocks
from lightllm_mp.kernels.triton.block_sizes import processors
from lightllm_mp.kernels.triton.launch import kernel

CHUNK = 256
"""Sequences that a scheduling program reads at a time. It is fixed, so that the kernels are compiled once."""


class DecodeShares(NamedTuple):
    """`plan` int32: the queue's length; the first sequence of each program; where each sequence begins in the queue,
    and the queue's length. All layers use the same partial results (float32) in turn."""

    programs: int
    plan: Tensor
    partial: Tensor
    """[programs + sequences, heads, value_dim]: normalised results of parts of contexts."""
    logsum: Tensor
    """[programs + sequences, heads]: base-2 logarithm of each part's sum of exponentials, its weight."""
    arrived: Tensor
    """int32 [sequences, columns]: parts of a context that are done; zero between layers."""
    ready: bool = False
    """Whether another layer has used them. If so, a kernel that starts early may read `plan` and the batch at once."""


def shares_of(batch: Batch, layout: HeadLayout, blocks: DecodeBlocks, columns: int) -> DecodeShares:
    """The step's decode shares, which all layers of one kind use. `columns`: programs that split the heads."""
    known, key = batch.schedule.decode, (layout.heads, layout.values, layout.window, blocks, columns)
    if key not in known:
        made = decode_shares(batch, layout, blocks, columns)
        known[key] = made._replace(ready=True)
        return made
    return known[key]


def tiles_of(batch: Batch, queries: int) -> Tensor:
    """The step's prefill tiles."""
    known = batch.schedule.prefill
    if queries not in known:
        known[queries] = prefill_tiles(batch, queries)
    return known[queries]


def decode_shares(batch: Batch, layout: HeadLayout, blocks: DecodeBlocks, columns: int) -> DecodeShares:
    device, sequences = batch.context.device, batch.sequences
    programs = max(1, processors(device) * blocks.programs // columns)
    plan = torch.empty(programs + sequences + 2, dtype=torch.int32, device=device)
    places = (programs + sequences, layout.heads)
    shares = DecodeShares(
        programs,
        plan,
        torch.empty((*places, layout.values), dtype=torch.float32, device=device),
        torch.empty(places, dtype=torch.float32, device=device),
        torch.zeros((sequences, columns), dtype=torch.int32, device=device),
    )
    _share_kernel.launch(
        (programs, 1, 1),
        _share_kernel.arguments(
            seq_start=batch.seq_start,
            context=batch.context,
            plan=plan,
            sequences=sequences,
            programs=programs,
            WINDOW=layout.window,
            BLOCK=blocks.keys,
            START=blocks.start,
            CHUNK=CHUNK,
        ),
    )
    return shares


def prefill_tiles(batch: Batch, queries: int) -> Tensor:
    """int32 [tiles, 2]: sequence (-1: no tile) and block of `queries` queries, a sequence's last block first."""
    sequences = batch.sequences
    tiles = torch.empty((batch.tokens // queries + sequences, 2), dtype=torch.int32, device=batch.context.device)
    grid = (tiles.shape[0], 1, 1)
    _tile_kernel.launch(
        grid,
        _tile_kernel.arguments(seq_start=batch.seq_start, tiles=tiles, sequences=sequences, BLOCK=queries, CHUNK=CHUNK),
    )
    return tiles


@triton.jit
def share_of(p, total, programs):
    """Begin and end of program p's share in a queue of `total` units. If there are fewer units than programs, each of
    the first `total` programs has one unit."""
    active = tl.maximum(tl.minimum(programs, total), 1)
    return tl.minimum(p, active) * total // active, tl.minimum(p + 1, active) * total // active


@triton.jit
def owner_of(unit, total, programs):
    """The program that has this unit: the last p with p * total // active <= unit."""
    active = tl.maximum(tl.minimum(programs, total), 1)
    return ((unit + 1) * active - 1) // total


@kernel(numbers=["sequences", "programs"])
def _share_kernel(
    seq_start,
    context,
    plan,
    sequences,
    programs,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
    START: tl.constexpr,
    CHUNK: tl.constexpr,
):
    p = tl.program_id(0)
    total = 0
    for base in range(0, sequences, CHUNK):
        total += tl.sum(_units(seq_start, context, base, sequences, WINDOW, BLOCK, START, CHUNK))
    begin, _ = share_of(p, total, programs)
    first, before = 0, 0
    for base in range(0, sequences, CHUNK):
        units = _units(seq_start, context, base, sequences, WINDOW, BLOCK, START, CHUNK)
        ends = before + tl.cumsum(units, 0)
        lane = base + tl.arange(0, CHUNK)
        if p == 0:
            tl.store(plan + programs + 2 + lane, ends, mask=lane < sequences)
        first += tl.sum(((ends <= begin) & (lane < sequences)).to(tl.int32))
        before += tl.sum(units)
    tl.store(plan + 1 + p, first)
    if p == 0:
        tl.store(plan, total)
        tl.store(plan + programs + 1, 0)


@triton.jit
def _units(
    seq_start,
    context,
    base,
    sequences,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
    START: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Units of each of CHUNK sequences: START plus its key blocks; 0 unless the sequence has one new token."""
    lane = base + tl.arange(0, CHUNK)
    inside = lane < sequences
    length = tl.load(context + lane, mask=inside, other=0)
    start = tl.load(seq_start + lane, mask=inside, other=0)
    new = tl.load(seq_start + lane + 1, mask=inside, other=0) - start
    blocks = tl.cdiv(length, BLOCK)
    if WINDOW:
        blocks -= tl.maximum(length - WINDOW, 0) // BLOCK
    return tl.where(new == 1, blocks + START, 0)


@kernel(numbers=["sequences"])
def _tile_kernel(seq_start, tiles, sequences, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    t = tl.program_id(0)
    sequence, before, end = 0, 0, 0
    for base in range(0, sequences, CHUNK):
        lane = base + tl.arange(0, CHUNK)
        inside = lane < sequences
        start = tl.load(seq_start + lane, mask=inside, other=0)
        new = tl.load(seq_start + lane + 1, mask=inside, other=0) - start
        blocks = tl.where(new > 1, tl.cdiv(new, BLOCK), 0)
        ends = before + tl.cumsum(blocks, 0)
        sequence += tl.sum(((ends <= t) & inside).to(tl.int32))
        end += tl.sum(tl.where((ends - blocks <= t) & (t < ends), ends, 0))
        before += tl.sum(blocks)
    tl.store(tiles + 2 * t, tl.where(t < before, sequence, -1))
    tl.store(tiles + 2 * t + 1, end - 1 - t)
