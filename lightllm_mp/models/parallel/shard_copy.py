"""Copies a rank's part of the checkpoint's tensors into its parameters."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lightllm_mp.kernels.quantised import BlockRows, BlockWeight, GroupedWeight
from lightllm_mp.models.parallel.sharding import RowRun, ShardCut, ShardRows


class Sliceable(Protocol):
    """A tensor, or one in a file of which only the indexed part is read."""

    def __getitem__(self, at: slice | tuple[slice, ...], /) -> Tensor: ...


def place(source: Sliceable, target: Tensor, cut: ShardCut, first: int, count: int) -> None:
    """Copies rows first .. first + count - 1 of a parameter, `source`, as far as the rank keeps them, to `target`."""
    for row in _rows(cut, first, count):
        if cut.columns is None:
            target[row.to : row.to + row.length].copy_(source[_slice(row)])
            continue
        for column in cut.columns.runs:
            part = target[row.to : row.to + row.length, column.to : column.to + column.length]
            part.copy_(source[_slice(row), _slice(column)])


def part_of_packed(weight: GroupedWeight, cut: ShardCut, first: int) -> tuple[int, GroupedWeight] | None:
    """(first row in the rank's own parameter, the rank's part) of a packed piece from row `first` of the parameter on.

    None: the part is empty. The cut must not be padded: packed codes cannot express zeros.
    """
    rows = _rows(cut, first, weight.codes.shape[0])
    if not rows:
        return None
    if cut.rows is not None:
        weight = weight.reordered(lambda x: torch.cat([x[_slice(row)] for row in rows]))
    if cut.columns is not None:
        begin, count, _ = cut.columns.runs[0]
        weight = weight.columns(begin, begin + count)
    return rows[0].to, weight


def parts_of_blocks(blocks: BlockRows, cut: ShardCut, first: int) -> list[tuple[int, BlockRows]] | None:
    """The rank's parts of a piece from row `first` of the parameter on, each with its first row in the rank's own.

    One part without rows where the rank keeps none. None: columns cannot be cut between blocks.
    """
    if cut.columns is not None:
        (run,) = cut.columns.runs
        own = blocks.cut(run.start, run.start + run.length)
        own = None if own is None else own.padded(cut.columns.count)
        if own is None:
            return None
        blocks = own
    runs = _rows(cut, first, blocks.rows.shape[0])
    return [(run.to, BlockRows(blocks.rows[_slice(run)], blocks.type)) for run in runs or [RowRun(0, 0)]]


def without_gaps(parts: list[tuple[int, BlockRows]], count: int) -> tuple[BlockRows, ...]:
    """Parts in the order of their first rows, filled up with rows of zeros to `count`."""
    whole: list[BlockRows] = []
    at = 0
    for to, part in sorted(parts, key=lambda entry: entry[0]):
        if to > at:
            whole.append(part.zeros(to - at))
        whole.append(part)
        at = to + part.rows.shape[0]
    if at < count:
        whole.append(whole[-1].zeros(count - at))
    return tuple(part for part in whole if part.rows.shape[0])


def in_equal_parts(blocks: tuple[BlockRows, ...], count: int) -> tuple[BlockWeight, ...]:
    """Stacked rows as `count` weights with equally many rows."""
    each = sum(part.rows.shape[0] for part in blocks) // count
    weights: list[list[BlockRows]] = [[]]
    left = each
    for rows, kind in blocks:
        while rows.shape[0]:
            if not left:
                weights.append([])
                left = each
            weights[-1].append(BlockRows(rows[:left], kind))
            taken = weights[-1][-1].rows.shape[0]
            rows, left = rows[taken:], left - taken
    return tuple(BlockWeight(tuple(parts)) for parts in weights)


def _rows(cut: ShardCut, first: int, count: int) -> list[RowRun]:
    rows = cut.rows or ShardRows((RowRun(0, first + count),), first + count)
    return rows.within(first, first + count)


def _slice(run: RowRun) -> slice:
    return slice(run.start, run.start + run.length)
