"""Blocks of the projections of few rows, as data; `scripts/bench_linear.py` measures them.

A table's key is (outputs, inputs, rows): the size of the weight, and the number of rows padded to a power of two of at
least 16 (1: a single row). A plain weight that is not in the table is multiplied by cuBLAS.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from lightllm_mp.kernels.triton.tuned import padded


class LinearBlocks(NamedTuple):
    """Outputs and inputs a program holds at a time, programs per multiprocessor, warps, how many loads run ahead, and
    whether the weight is the left operand of the product (so that its outputs, not the few rows, fill the wide side of
    Hopper's matrix instruction)."""

    outputs: int
    inputs: int
    programs: int
    warps: int
    stages: int
    swapped: bool


Table = dict[tuple[int, int, int], LinearBlocks]

CAPABILITY = (9, 0)
"""Of the GPU that the tables are for."""
ROWS_AT_A_TIME = 128
"""The most rows of one program."""
MOST_ROWS = {"int8": 256, "fp8": 64, "int4": 256}
"""Rows up to which a quantised weight is read as it is; for more it is expanded (or, fp8, multiplied in 8 bits)."""

PLAIN: Table = {}
INT8: Table = {}
FP8: Table = {}
INT4: Table = {}
TABLES = {"plain": PLAIN, "int8": INT8, "fp8": FP8, "int4": INT4}

FALLBACK: dict[int, LinearBlocks] = {
    16: LinearBlocks(64, 128, 3, 4, 4, False),
    32: LinearBlocks(64, 128, 3, 4, 4, False),
    64: LinearBlocks(64, 128, 2, 4, 4, True),
    128: LinearBlocks(128, 128, 1, 8, 3, True),
}
"""For a quantised weight that is not in its table, by padded rows of one program. Not measured."""


def plain_blocks(outputs: int, inputs: int, rows: int, device: torch.device) -> LinearBlocks | None:
    """None: cuBLAS is not known to be slower."""
    if not PLAIN or rows > ROWS_AT_A_TIME or not _measured(device):
        return None
    return PLAIN.get((outputs, inputs, 1 if rows == 1 else padded(rows)))


def quantised_blocks(form: str, outputs: int, inputs: int, rows: int) -> LinearBlocks:
    """In a fallback, as many inputs at a time as divide those that there are."""
    found = TABLES[form].get((outputs, inputs, padded(rows)))
    if found is not None:
        return found
    usual = FALLBACK[min(padded(rows), ROWS_AT_A_TIME)]
    return usual._replace(inputs=min(usual.inputs, inputs & -inputs))


@cache
def _measured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == CAPABILITY
