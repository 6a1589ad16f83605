"""Groups tokens by expert on the device, so that sizes of grids and buffers depend only on shapes.

An assignment is a token's i-th expert; its number is token * top_k + i. Assignments are sorted by expert, then by
number, and cut into tiles of up to `rows` that share one expert. Tiles have fixed places; some stay empty. Assignments
to experts of other ranks come last and have no tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.triton.block_sizes import next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel

MOST_AT_ONCE = 2048
"""Assignments that a program reads at a time."""


class ExpertTiles(NamedTuple):
    """int32 tensors on the device."""

    order: Tensor
    """[assignments]: numbers of assignments, sorted."""
    tiles: Tensor
    """[places, 3]: expert (-1: no tile), first assignment in `order`, count."""

    @property
    def places(self) -> int:
        return self.tiles.shape[0]


def expert_tiles(numbers: Tensor, experts: int, rows: int) -> ExpertTiles:
    """Sorts and cuts the assignments. numbers [tokens, top_k]: experts; those outside 0 .. experts - 1 are of other
    ranks. Deterministic. Does not wait for the device."""
    assignments = numbers.numel()
    by_expert = assignments // rows + experts + 1
    order = torch.empty(assignments, dtype=torch.int32, device=numbers.device)
    tiles = torch.empty((min(assignments, by_expert), 3), dtype=torch.int32, device=numbers.device)
    chunk = min(MOST_AT_ONCE, max(32, next_power_of_2(assignments)))
    _tiles_kernel.launch(
        (experts + 1, 1, 1),
        _tiles_kernel.arguments(
            numbers=numbers,
            order=order,
            tiles=tiles,
            assignments=assignments,
            EXPERTS=experts,
            ROWS=rows,
            LEADERS=assignments < by_expert,
            CHUNK=chunk,
        ),
        warps=max(1, chunk // 512),
    )
    return ExpertTiles(order, tiles)


@kernel(numbers=["assignments"])
def _tiles_kernel(
    numbers,
    order,
    tiles,
    assignments,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    LEADERS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A program handles one expert, or (number EXPERTS) all experts of other ranks. With LEADERS a tile's place is the
    number of its first assignment. Else the expert's places begin at floor(b / ROWS) + expert, where b assignments
    belong to smaller experts: floor((b + n) / ROWS) + 1 leaves room for this expert's n."""
    expert = tl.program_id(0)
    before, count = 0, 0
    for base in range(0, assignments, CHUNK):
        at = base + tl.arange(0, CHUNK)
        number = _here(tl.load(numbers + at, mask=at < assignments, other=EXPERTS), EXPERTS)
        before += tl.sum((number < expert).to(tl.int32), 0)
        count += tl.sum(((number == expert) & (at < assignments)).to(tl.int32), 0)
    seen = 0
    for base in range(0, assignments, CHUNK):
        at = base + tl.arange(0, CHUNK)
        number = _here(tl.load(numbers + at, mask=at < assignments, other=EXPERTS), EXPERTS)
        mine = (number == expert) & (at < assignments)
        rank = seen + tl.cumsum(mine.to(tl.int32), 0) - 1
        seen += tl.sum(mine.to(tl.int32), 0)
        tl.store(order + before + rank, at, mask=mine)
        if LEADERS:
            used = (rank % ROWS == 0) & (expert < EXPERTS)
            _store_tile(tiles, at, used, expert, before + rank, count - rank, mine, ROWS)
    if not LEADERS:
        first, end = before // ROWS + expert, (before + count) // ROWS + expert + 1
        for base in range(first, end, 32):
            place = base + tl.arange(0, 32)
            done = (place - first) * ROWS
            used = (done < count) & (expert < EXPERTS)
            _store_tile(tiles, place, used, expert, before + done, count - done, place < end, ROWS)


@triton.jit
def _here(number, EXPERTS: tl.constexpr):
    """The expert's number, or EXPERTS if the expert is of another rank."""
    return tl.where((number >= 0) & (number < EXPERTS), number, EXPERTS)


@triton.jit
def _store_tile(tiles, place, used, expert, first, left, mask, ROWS: tl.constexpr):
    tl.store(tiles + 3 * place, tl.where(used, expert, -1), mask=mask)
    tl.store(tiles + 3 * place + 1, first, mask=mask)
    tl.store(tiles + 3 * place + 2, tl.minimum(left, ROWS), mask=mask)
