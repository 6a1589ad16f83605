"""Copies a rank's part of the checkpoint's tensors into its parameters."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from lightllm_mp.kernels.quantised import BlockRows, BlockWeight, GroupedWeight, ScaledWeight
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


def place_scaled(
    piece: ScaledWeight,
    whole: ScaledWeight | None,
    shape: tuple[int, ...],
    cut: ShardCut,
    first: int,
    device: torch.device | str,
) -> ScaledWeight:
    """As `place` for rows of a scaled weight from row `first` of the parameter on. Returns the rank's part `whole` of
    `shape`, which it makes (with zeros) for the first piece.

    A cut between inputs that share a scale makes smaller groups: scales are repeated, and stay exact.
    """
    count, scales, group = piece.scales.shape[0], piece.scales, piece.group
    if group and cut.columns is not None:
        scales, group = _cut_scales(scales, group, cut.columns)
    if whole is None:
        kind = piece.values[0:1].dtype
        ones = torch.ones((shape[0], scales.shape[1]), dtype=torch.float32, device=device)
        whole = ScaledWeight(torch.zeros(shape, dtype=kind, device=device), ones, group)
    elif whole.group != group:
        common = math.gcd(whole.group, group)  # of 0, all inputs, and a group: the group
        scales = _regrouped(scales, group, common, shape[1])
        whole = ScaledWeight(whole.values, _regrouped(whole.scales, whole.group, common, shape[1]), common)
    place(piece.values, whole.values, cut, first, count)
    place(scales, whole.scales, ShardCut(cut.rows), first, count)
    return whole


def _cut_scales(scales: Tensor, group: int, columns: ShardRows) -> tuple[Tensor, int]:
    """Scales of a rank's columns, and the inputs that share one."""
    each = math.gcd(group, *(at for run in columns.runs for at in (run.start, run.to)))
    own = scales.new_ones((scales.shape[0], -(-columns.count // each)))
    for run in columns.runs:
        groups = torch.arange(run.start, run.start + run.length, each) // group
        own[:, run.to // each : run.to // each + len(groups)] = scales[:, groups]
    return own, each


def _regrouped(scales: Tensor, group: int, to: int, columns: int) -> Tensor:
    """Scales of groups of `group` inputs (0: all) for groups of `to`, which divides it."""
    return scales[:, torch.arange(0, columns, to, device=scales.device) // (group or columns)]


def in_experts(weight: ScaledWeight, count: int) -> ScaledWeight:
    """Stacked rows as [count, n, k]."""
    values, scales = (x.view(count, -1, x.shape[1]) for x in (weight.values, weight.scales))
    return ScaledWeight(values, scales, weight.group)


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
