"""Block sizes of the experts' kernels on an H100, as data. They are chosen by hand; `tools.bench.kernels.moe` measures
them."""

from __future__ import annotations

from typing import NamedTuple

import torch


class ProductBlocks(NamedTuple):
    """Outputs and inputs that a program holds at a time, its warps, and loads that run ahead."""

    columns: int
    inputs: int
    warps: int
    stages: int


class ExpertBlocks(NamedTuple):
    """Blocks of both products, which share the tiles of `rows` tokens of one expert."""

    rows: int
    gate_up: ProductBlocks
    down: ProductBlocks
    together: int
    """Consecutive tiles that use the same weights before the next weights."""


class AloneBlocks(NamedTuple):
    """Blocks for steps that are multiplied token by token: outputs and inputs at a time, and warps."""

    outputs: int
    inputs: int
    warps: int


ALONE_TOKENS = 1
"""The most tokens of a step that is multiplied token by token, in 16 bits."""
ALONE_GATE_UP = AloneBlocks(1, 2048, 8)
ALONE_DOWN = AloneBlocks(1, 2048, 8)
PACKED_ALONE_TOKENS = 1
"""The same for weights in MXFP4; not measured."""
PACKED_ALONE_GATE_UP = AloneBlocks(4, 2048, 4)
PACKED_ALONE_DOWN = AloneBlocks(8, 2048, 4)

Table = dict[int, list[tuple[float, ExpertBlocks]]]
"""By bytes per element: the largest mean number of rows per expert, and the blocks for it."""

LARGE_SHARED = 160 * 1024
"""Bytes of shared memory that the H100's blocks need."""

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


PACKED: Table = {
    2: [
        (24.0, ExpertBlocks(16, ProductBlocks(64, 64, 4, 4), ProductBlocks(64, 64, 4, 4), 4)),
        (96.0, ExpertBlocks(64, ProductBlocks(64, 64, 4, 4), ProductBlocks(128, 64, 4, 4), 8)),
        (float("inf"), ExpertBlocks(128, ProductBlocks(64, 64, 8, 3), ProductBlocks(128, 64, 8, 3), 8)),
    ],
    4: [(float("inf"), ExpertBlocks(16, ProductBlocks(32, 64, 4, 2), ProductBlocks(32, 64, 4, 2), 4))],
}
"""For weights in MXFP4, whose steps have 64 inputs; not tuned."""


FP8: list[tuple[float, ExpertBlocks]] = [
    (10.0, ExpertBlocks(16, ProductBlocks(128, 128, 4, 3), ProductBlocks(64, 128, 4, 4), 4)),
    (24.0, ExpertBlocks(32, ProductBlocks(128, 128, 4, 3), ProductBlocks(64, 128, 4, 4), 4)),
    (96.0, ExpertBlocks(64, ProductBlocks(128, 128, 8, 3), ProductBlocks(128, 128, 4, 4), 4)),
    (float("inf"), ExpertBlocks(128, ProductBlocks(128, 128, 8, 3), ProductBlocks(128, 128, 8, 3), 8)),
]
"""For 8-bit floats on both sides: gate and up have 128 columns, one group of the result; not measured."""


def fp8_blocks(assignments: int, experts: int) -> ExpertBlocks:
    """As `expert_blocks`."""
    return next(blocks for most, blocks in FP8 if assignments <= most * experts)


def expert_blocks(
    assignments: int, experts: int, dtype: torch.dtype, shared: int, *, packed: bool = False
) -> ExpertBlocks:
    """For `assignments` rows over all experts, on a GPU with `shared` bytes of shared memory per program."""
    table = PACKED if packed else H100 if shared >= LARGE_SHARED else OTHERS
    return next(blocks for most, blocks in table[dtype.itemsize] if assignments <= most * experts)
