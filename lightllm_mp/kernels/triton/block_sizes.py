"""Sizes of blocks and buffers. Triton's own `next_power_of_2` costs the host more."""

from __future__ import annotations

from functools import cache

import torch

INTERPRETED_PROCESSORS = 6


def next_power_of_2(size: int) -> int:
    """The least power of two that is not below `size` > 0."""
    return 1 << (size - 1).bit_length()


def dot_block(size: int) -> int:
    """The least side of a block of `tl.dot` that holds `size`: a power of two, at least 16."""
    return max(16, 1 << (size - 1).bit_length())


def round_up(size: int, multiple: int) -> int:
    """The least multiple that is not below `size`."""
    return -(-size // multiple) * multiple


def processors(device: torch.device) -> int:
    """Multiprocessors of the GPU; few where kernels are interpreted."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def converts_fp8(device: torch.device) -> bool:
    """Whether kernels read 8-bit floats: the interpreter, and GPUs from compute capability 8.9 on."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)
