"""Measures the highest rates of this GPU; benchmarks give their figures as shares of these."""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

import torch
import triton.language as tl

from lightllm_mp.kernels.triton.block_sizes import processors
from lightllm_mp.kernels.triton.launch import kernel
from tools.harness.figures import median_seconds, say
from tools.harness.gpu import seconds

READ_BYTES = 4 << 30
"""Bytes: many times the cache, and enough that the kernel's start does not count."""
SIDE = 8192


class Ceilings(NamedTuple):
    bandwidth: float
    """Bytes read per second."""
    product: float
    """Operations per second of a large product of random bfloat16 matrices."""
    product_fp8: float
    """The same for 8-bit floats with one scale per operand; the bfloat16 figure if the GPU has no such product."""


@cache
def ceilings() -> Ceilings:
    """Measured at the first call, in about a second. Without a GPU: rough values for this computer, for smoke runs."""
    if not torch.cuda.is_available():
        return _of_this_computer()
    product = _product()
    found = Ceilings(_bandwidth(), product, _product_fp8() or product)
    say(
        f"this GPU: {found.bandwidth / 1e12:.3f} TB/s read, {found.product / 1e12:.0f} TFLOP/s, "
        f"{found.product_fp8 / 1e12:.0f} with 8-bit floats"
    )
    torch.cuda.empty_cache()
    return found


def _of_this_computer() -> Ceilings:
    data, matrix = torch.ones(1 << 22), torch.ones((256, 256))
    bandwidth = data.nbytes / median_seconds(data.sum, 3)
    product = 2 * 256**3 / median_seconds(lambda: torch.mm(matrix, matrix), 3)
    return Ceilings(bandwidth, product, product)


def _bandwidth() -> float:
    data = torch.randint(0, 1 << 30, (READ_BYTES // 4,), dtype=torch.int32, device="cuda")
    out = torch.empty(64 * processors(data.device), dtype=torch.int32, device="cuda")

    def took(each: int, block: int, warps: int) -> float:
        grid = (each * processors(data.device), 1, 1)
        arguments = _read_kernel.arguments(data=data, out=out, count=data.numel(), programs=grid[0], BLOCK=block)
        return seconds(lambda: _read_kernel.launch(grid, arguments, warps=warps), repeats=7)

    return READ_BYTES / min(took(*sizes) for sizes in itertools.product((4, 8, 16), (2048, 4096), (4, 8)))


@kernel(numbers=["count", "programs"])
def _read_kernel(data, out, count, programs, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.int32)
    for at in range(tl.program_id(0) * BLOCK, count, programs * BLOCK):
        total += tl.load(data + at + tl.arange(0, BLOCK))
    tl.store(out + tl.program_id(0), tl.sum(total))


def _product() -> float:
    a, b = (torch.randn((SIDE, SIDE), device="cuda").bfloat16() for _ in range(2))
    return 2 * SIDE**3 / seconds(lambda: torch.mm(a, b), repeats=10)


def _product_fp8() -> float | None:
    """None if the GPU has no such product."""
    if torch.cuda.get_device_capability() < (8, 9):
        return None
    a, b = (torch.randn((SIDE, SIDE), device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device="cuda")

    def work() -> torch.Tensor:
        return torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

    return 2 * SIDE**3 / seconds(work, repeats=10)
