"""Block sizes of the attention kernels, measured with `scripts/bench_gpu.py --sweep` on an H100, kept as data."""

from __future__ import annotations

from typing import NamedTuple

import torch


class PrefillBlocks(NamedTuple):
    """Queries and keys a program holds at a time, its warps, and how many loads of keys run ahead."""

    queries: int
    keys: int
    warps: int
    stages: int


class DecodeBlocks(NamedTuple):
    """Keys a program holds at a time, its warps, how many loads run ahead, and programs per multiprocessor."""

    keys: int
    warps: int
    stages: int
    programs: int


MAX_HEAD_DIM = 256

PREFILL: dict[tuple[int, int], PrefillBlocks] = {
    (64, 2): PrefillBlocks(64, 64, 4, 3),
    (128, 2): PrefillBlocks(128, 64, 4, 3),
    (256, 2): PrefillBlocks(128, 64, 8, 2),
    (64, 4): PrefillBlocks(32, 32, 4, 2),
    (128, 4): PrefillBlocks(32, 32, 4, 1),
    (256, 4): PrefillBlocks(16, 16, 4, 1),
}
"""By head_dim padded to a power of two (at least 64), and bytes of an element."""

FEW_QUERIES = 24576
"""Query heads of a step below which blocks of PREFILL would leave multiprocessors idle."""

PREFILL_FEW: dict[tuple[int, int], PrefillBlocks] = {
    (64, 2): PrefillBlocks(64, 128, 4, 2),
    (128, 2): PrefillBlocks(64, 64, 4, 2),
}

DECODE: dict[tuple[int, int], DecodeBlocks] = {
    (64, 2): DecodeBlocks(64, 2, 2, 6),
    (128, 2): DecodeBlocks(64, 2, 2, 4),
    (256, 2): DecodeBlocks(32, 2, 2, 4),
    (64, 4): DecodeBlocks(32, 4, 2, 4),
    (128, 4): DecodeBlocks(32, 4, 2, 4),
    (256, 4): DecodeBlocks(16, 4, 1, 2),
}


def padded(size: int) -> int:
    """The next power of two, at least 16: what a block of a matrix product may be."""
    return max(16, 1 << (size - 1).bit_length())


def prefill_blocks(head_dim: int, dtype: torch.dtype, queries: int) -> PrefillBlocks:
    """For a step of `queries` query heads, all tokens together."""
    key = (max(64, padded(head_dim)), dtype.itemsize)
    return (PREFILL_FEW if queries < FEW_QUERIES and key in PREFILL_FEW else PREFILL)[key]


def decode_blocks(head_dim: int, dtype: torch.dtype) -> DecodeBlocks:
    return DECODE[max(64, padded(head_dim)), dtype.itemsize]
