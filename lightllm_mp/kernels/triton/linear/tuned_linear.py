"""Block sizes of projections of few rows by quantised weights on an H100, as data. `tools.bench.kernels.linear`
measures them. These were best for the weights of Llama-2-7B's and Llama-3-8B's MLPs together."""

from __future__ import annotations

from typing import NamedTuple

from lightllm_mp.kernels.triton.block_sizes import dot_block


class LinearBlocks(NamedTuple):
    """Outputs and inputs that a program holds at a time, programs per multiprocessor, warps, loads that run ahead, and
    whether the weight is the left operand of the product. If it is, its outputs, not the few rows, fill the wide side
    of Hopper's matrix instruction."""

    outputs: int
    inputs: int
    programs: int
    warps: int
    stages: int
    swapped: bool


class Fp8Blocks(NamedTuple):
    """For products of 8-bit floats in blocks: rows and outputs of a tile, warps, loads that run ahead, and tiles of
    rows that are computed together."""

    rows: int
    outputs: int
    warps: int
    stages: int
    together: int


ROWS_AT_A_TIME = 128
"""The most rows per program."""
MOST_ROWS = {"int8": 256, "fp8": 128, "int4": 128}
"""The most rows for which a quantised weight is read as stored. For more it is expanded."""
MOST_ROWS_BEFORE_8_BITS = 16
"""The same if the GPU can multiply in 8 bits. For more rows, activations are rounded to fp8 too."""
MOST_STREAMED_IN_8_BITS = 256
"""The most rows for which a product of 8-bit floats in blocks is also cut along the inputs."""

BLOCKS: dict[str, dict[int, LinearBlocks]] = {
    "int8": {
        16: LinearBlocks(32, 256, 5, 4, 3, False),
        32: LinearBlocks(64, 128, 3, 4, 5, False),
        64: LinearBlocks(128, 64, 1, 8, 5, False),
        128: LinearBlocks(128, 64, 1, 8, 5, False),
    },
    "fp8": {
        16: LinearBlocks(64, 128, 2, 8, 4, False),
        32: LinearBlocks(64, 128, 3, 4, 5, False),
        64: LinearBlocks(128, 128, 1, 8, 3, True),
        128: LinearBlocks(128, 64, 1, 8, 4, False),
    },
    "fp8 x fp8": {
        16: LinearBlocks(64, 128, 3, 4, 4, True),
        32: LinearBlocks(64, 128, 3, 4, 4, True),
        64: LinearBlocks(64, 128, 2, 4, 4, False),
        128: LinearBlocks(64, 128, 1, 8, 4, False),
    },
    "int4": {
        16: LinearBlocks(128, 128, 2, 4, 5, True),
        32: LinearBlocks(128, 128, 2, 4, 5, True),
        64: LinearBlocks(64, 128, 2, 4, 3, True),
        128: LinearBlocks(128, 128, 1, 8, 4, True),
    },
}
"""By form, then by `dot_block` of the rows of a program. `fp8 x fp8` (blocks on both sides) is not measured."""

FP8: list[tuple[float, Fp8Blocks]] = [
    (512, Fp8Blocks(64, 128, 4, 4, 8)),
    (float("inf"), Fp8Blocks(128, 128, 8, 3, 8)),
]
"""(the most rows, the blocks for them); not measured."""


def fp8_blocks(rows: int) -> Fp8Blocks:
    return next(blocks for most, blocks in FP8 if rows <= most)


def quantised_blocks(form: str, inputs: int, rows: int) -> LinearBlocks:
    """The blocks for this form and number of rows, with a power of two of inputs at a time that divides `inputs`."""
    best = BLOCKS[form][min(dot_block(rows), ROWS_AT_A_TIME)]
    return best._replace(inputs=min(best.inputs, inputs & -inputs))
