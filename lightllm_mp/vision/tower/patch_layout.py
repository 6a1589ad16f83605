"""The order of the patches in a batch of images, and which of them attend to each other. Pure numpy.

Attention wants sequences of equal length side by side, so windows of one length are grouped over all images of the
batch. In layers where every patch sees its whole image, images of one size are grouped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightllm_mp.vision.sizing import PatchGrid

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SequenceRun:
    """`count` consecutive sequences of `length` rows each, from row `start`."""

    start: int
    count: int
    length: int


@dataclass(frozen=True, slots=True)
class WindowLayout:
    """Layout of a batch whose patches attend within windows, and in some layers within their image."""

    order: Ints
    """[patches]: the patch at each row; a merged group of patches stays together."""
    units_back: Ints
    """[merged patches]: the row of each merged patch."""
    windows: tuple[SequenceRun, ...]
    full_rows: Ints
    """[patches]: the rows, image after image, images of one size together."""
    full: tuple[SequenceRun, ...]
    """Sequences of the rows in that order."""
    coordinates: Ints
    """[2, patches]: row and column, in its image, of the patch at each row."""
    edges: Ints
    """[2, patches]: rows and columns of its image, for the patch at each row."""


def same_length(count: int, length: int) -> tuple[SequenceRun, ...]:
    """Sequences of one length."""
    return (SequenceRun(0, count, length),)


def window_layout(grids: Sequence[PatchGrid], merge: int, window: int) -> WindowLayout:
    """The layout for images whose patches come from preprocessing block after block of merge x merge.

    `window` is the edge of a window in blocks; windows at the lower and right edge are smaller (Qwen2.5-VL). 0: a frame
    is a window. A frame counts as an image of its own.
    """
    grids = [PatchGrid(1, grid.rows, grid.columns) for grid in grids for _ in range(grid.frames)]
    window = window or max(max(grid.rows, grid.columns) for grid in grids)
    unit = merge * merge
    of_block = _window_of_blocks(grids, merge, window)
    lengths = np.bincount(of_block)
    blocks = np.lexsort((of_block, lengths[of_block]))
    order = (blocks[:, None] * unit + np.arange(unit)).reshape(-1)
    row_of = np.argsort(order, kind="stable")
    full, patches = _by_size(np.array([grid.patches for grid in grids]))
    return WindowLayout(
        order=order,
        units_back=np.argsort(blocks, kind="stable"),
        windows=_groups(*np.unique(lengths, return_counts=True), unit),
        full_rows=row_of[patches],
        full=full,
        coordinates=np.concatenate([_coordinates(grid, merge) for grid in grids], axis=1)[:, order],
        edges=np.array([grid[1:] for grid in grids]).repeat([grid.patches for grid in grids], axis=0).T[:, order],
    )


def _window_of_blocks(grids: Sequence[PatchGrid], merge: int, window: int) -> Ints:
    """The window number of every block of the batch."""
    numbers, base = [], 0
    for grid in grids:
        row, column = np.indices((grid.rows // merge, grid.columns // merge))
        down, across = -(-grid.rows // merge // window), -(-grid.columns // merge // window)
        numbers.append(row // window * across + column // window + base)
        base += down * across
    return np.concatenate([number.reshape(-1) for number in numbers])


def _groups(lengths: Ints, counts: Ints, unit: int) -> tuple[SequenceRun, ...]:
    groups, start = [], 0
    for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
        groups.append(SequenceRun(start, count, length * unit))
        start += count * length * unit
    return tuple(groups)


def _by_size(sizes: Ints) -> tuple[tuple[SequenceRun, ...], Ints]:
    """Images grouped by number of patches, and their patches in that order."""
    starts = np.cumsum(sizes) - sizes
    ranked = np.argsort(sizes, kind="stable")
    patches = np.concatenate([np.arange(starts[i], starts[i] + sizes[i]) for i in ranked])
    return _groups(*np.unique(sizes, return_counts=True), 1), patches


def _coordinates(grid: PatchGrid, merge: int) -> Ints:
    """[2, patches]: row and column of each patch of one image, block after block."""
    shape = (grid.rows // merge, grid.columns // merge, merge, merge)
    row, column, inner_row, inner_column = np.indices(shape)
    return np.stack([(row * merge + inner_row).reshape(-1), (column * merge + inner_column).reshape(-1)])
