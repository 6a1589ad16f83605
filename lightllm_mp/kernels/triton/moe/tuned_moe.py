"""Block sizes of the experts' kernels for an H100, as data: chosen by hand, measured with `tools.bench.moe`."""

from __future__ import annotations

from typing import NamedTuple

import torch


class ProductBlocks(NamedTuple):
    """Outputs and inputs a program holds at a time, its warps, and how many loads run ahead."""

    columns: int
    inputs: int
    warps: int
    stages: int


class ExpertBlocks(NamedTuple):
    """Of both products, which share the tiles of `rows` tokens of one expert."""

    rows: int
    gate_up: ProductBlocks
    down: ProductBlocks
    together: int
    """Tiles that meet the same weights, one after another, before the next weights come."""


class AloneBlocks(NamedTuple):
    """Of steps that are multiplied row by row: outputs and inputs a program holds at a time, and its warps."""

    outputs: int
    inputs: int
    warps: int


ALONE_TOKENS = 1
"""Tokens of a 16-bit step up to which each token reads its own experts' weights."""
ALONE_GATE_UP = AloneBlocks(1, 2048, 8)
ALONE_DOWN = AloneBlocks(1, 2048, 8)

Table = dict[int, list[tuple[float, ExpertBlocks]]]
"""By bytes of an element: the mean number of rows of an expert up to which the blocks serve."""

LARGE_SHARED = 160 * 1024
"""Bytes of shared memory that the blocks of H100 need."""

H100: Table = {
    2: [
        (10.0, ExpertBlocks(16, ProductBlocks(32, 128, 4, 4), ProductBlocks(64, 128, 4, 4), 4)),
        (24.0, ExpertBlocks(32, ProductBlocks(32, 128, 4, 4), ProductBlocks(64, 128, 4, 4), 4)),
        (96.0, ExpertBlocks(64, ProductBlocks(64, 64, 4, 4), ProductBlocks(128, 64, 4, 4), 4)),
        (float("inf"), ExpertBlocks(128, ProductBlocks(128, 64, 8, 3), ProductBlocks(256, 64, 8, 3), 8)),
    ],
    4: [
        (10.0, ExpertBlocks(16, ProductBlocks(32, 32, 4, 2), ProductBlocks(32, 32, 4, 2), 4)),
        (float("inf"), ExpertBlocks(32, ProductBlocks(32, 32, 4, 2), ProductBlocks(64, 32, 4, 2), 8)),
    ],
}

OTHERS: Table = {
    2: [
        (16.0, ExpertBlocks(16, ProductBlocks(32, 64, 4, 3), ProductBlocks(64, 64, 4, 3), 4)),
        (float("inf"), ExpertBlocks(64, ProductBlocks(64, 32, 4, 3), ProductBlocks(64, 64, 4, 3), 8)),
    ],
    4: H100[4],
}
"""For GPUs with less shared memory; not tuned."""


def expert_blocks(assignments: int, experts: int, dtype: torch.dtype, shared: int) -> ExpertBlocks:
    """For `assignments` rows that spread over all experts, on a GPU with `shared` bytes of shared memory a program."""
    table = H100 if shared >= LARGE_SHARED else OTHERS
    return next(blocks for most, blocks in table[dtype.itemsize] if assignments <= most * experts)
