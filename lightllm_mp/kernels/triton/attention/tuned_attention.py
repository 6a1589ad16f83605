"""Block sizes of the attention kernels, as data.

`tools.bench.kernels.attention --sweep` chose the sizes of prefill over 16-bit keys at a head dimension of 128 on an
H100. On an H200 it chose those of decode over 16-bit keys at 128 and 256, of decode over 8-bit keys at all
dimensions, and of prefill over 8-bit keys at 128. The others come from an earlier form of the kernels or are chosen
by hand."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightllm_mp.kernels.triton.block_sizes import dot_block


class PrefillBlocks(NamedTuple):
    """Queries and keys that a program holds at a time, its warps, and the stages of its loop. The loads of a slot and
    of its key and the work on the key are one stage each: a program needs 5 or more to load keys while it works on
    others."""

    queries: int
    keys: int
    warps: int
    stages: int


class DecodeBlocks(NamedTuple):
    """Keys that a program holds at a time, its warps, stages (see PrefillBlocks), programs per multiprocessor, and the
    time to start a sequence, measured in blocks of keys."""

    keys: int
    warps: int
    stages: int
    programs: int
    start: int = 1


MAX_HEAD_DIM = 512
MOST_WARPS = 8
MAX_LATENT_DIM = 512

PREFILL: dict[tuple[int, int], PrefillBlocks] = {
    (64, 2): PrefillBlocks(64, 64, 4, 3),
    (128, 2): PrefillBlocks(128, 64, 4, 3),
    (256, 2): PrefillBlocks(128, 64, 8, 2),
    (64, 1): PrefillBlocks(128, 64, 4, 3),
    (128, 1): PrefillBlocks(128, 32, 4, 5),
    (256, 1): PrefillBlocks(128, 64, 8, 2),
    (64, 4): PrefillBlocks(32, 32, 4, 2),
    (128, 4): PrefillBlocks(32, 32, 4, 1),
    (256, 4): PrefillBlocks(16, 16, 4, 1),
    (512, 2): PrefillBlocks(64, 32, 8, 2),
    (512, 1): PrefillBlocks(64, 32, 8, 2),
    (512, 4): PrefillBlocks(16, 16, 4, 1),
}
"""By head_dim rounded up to a power of two (at least 64), and bytes of a stored element. Over 8-bit keys it is 4 for
float32 queries, 1 for others."""

FEW_QUERIES = 24576
"""With fewer query heads in a step, the blocks of PREFILL leave multiprocessors idle."""

PREFILL_FEW: dict[tuple[int, int], PrefillBlocks] = {
    (64, 2): PrefillBlocks(64, 128, 4, 2),
    (128, 2): PrefillBlocks(64, 64, 4, 2),
    (64, 1): PrefillBlocks(64, 64, 4, 2),
    (128, 1): PrefillBlocks(64, 64, 4, 2),
}

DECODE: dict[tuple[int, int], DecodeBlocks] = {
    (64, 2): DecodeBlocks(64, 2, 2, 6),
    (128, 2): DecodeBlocks(64, 2, 3, 4),
    (256, 2): DecodeBlocks(32, 2, 3, 4),
    (64, 1): DecodeBlocks(64, 1, 3, 8),
    (128, 1): DecodeBlocks(32, 1, 5, 8),
    (256, 1): DecodeBlocks(32, 2, 3, 4),
    (64, 4): DecodeBlocks(32, 4, 2, 4),
    (128, 4): DecodeBlocks(32, 4, 2, 4),
    (256, 4): DecodeBlocks(16, 4, 1, 2),
    (512, 2): DecodeBlocks(32, 4, 2, 1),
    (512, 1): DecodeBlocks(32, 4, 2, 1),
    (512, 4): DecodeBlocks(16, 4, 1, 1),
}

LATENT_DECODE: dict[tuple[int, int], DecodeBlocks] = {
    (16, 2): DecodeBlocks(32, 4, 5, 2),
    (32, 2): DecodeBlocks(32, 8, 5, 1),
    (64, 2): DecodeBlocks(32, 8, 5, 1),
    (16, 4): DecodeBlocks(16, 4, 1, 1),
}
"""By heads per program, and bytes per element."""

LATENT_PREFILL: dict[int, PrefillBlocks] = {2: PrefillBlocks(64, 32, 8, 2), 4: PrefillBlocks(16, 16, 4, 1)}
"""By bytes per element; `queries` counts tokens times heads."""


def precision(dtype: torch.dtype) -> str:
    """Triton's name for the precision of products of `dtype`: exact for float32. 16-bit products are always exact."""
    return "ieee" if dtype == torch.float32 else "tf32"


def wide(pool: Tensor) -> bool:
    """Whether an index into the pool needs 64 bits. 32 bits leave more registers for the sums."""
    return pool.numel() >= 1 << 31


def prefill_blocks(head_dim: int, dtype: torch.dtype, stored: torch.dtype, queries: int) -> PrefillBlocks:
    """The blocks for a step with `queries` query heads of all tokens together, over keys of type `stored`."""
    key = (max(64, dot_block(head_dim)), _bytes(dtype, stored))
    return (PREFILL_FEW if queries < FEW_QUERIES and key in PREFILL_FEW else PREFILL)[key]


def decode_blocks(head_dim: int, group: int, dtype: torch.dtype, stored: torch.dtype) -> DecodeBlocks:
    """The blocks for `group` query heads per key head. More than 16 need the registers of more warps."""
    blocks, more = DECODE[max(64, dot_block(head_dim)), _bytes(dtype, stored)], dot_block(group) // 16
    warps = min(MOST_WARPS, blocks.warps * more)
    return blocks._replace(warps=warps, programs=max(1, blocks.programs * blocks.warps // warps))


def _bytes(dtype: torch.dtype, stored: torch.dtype) -> int:
    return 4 if dtype.itemsize == 4 else stored.itemsize


def latent_decode_blocks(heads: int, dtype: torch.dtype) -> tuple[int, DecodeBlocks]:
    """Heads per program (as many as have sums that fit into registers) and the program's blocks."""
    most = max(rows for rows, size in LATENT_DECODE if size == dtype.itemsize)
    rows = min(dot_block(heads), most)
    return rows, LATENT_DECODE[rows, dtype.itemsize]


def latent_prefill_blocks(dtype: torch.dtype) -> PrefillBlocks:
    return LATENT_PREFILL[dtype.itemsize]
