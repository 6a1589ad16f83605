"""All 256 elements of 8 bits, in both places of a word."""

from __future__ import annotations

import pytest
import torch

from lightllm_mp.kernels.triton.attention.packed_bytes import as_words, even_of, odd_of, pairs
from lightllm_mp.kernels.triton.launch import kernel
from tests.kernels.triton.triton_case import CUDA, DEVICE, triton  # which chooses the interpreter

tl = triton.language
BLOCK = 1024


@kernel()
def _unpack_kernel(stored, even, odd, KIND: tl.constexpr, PTX: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(as_words(stored) + at)
    tl.store(even + at, even_of(words, even.dtype.element_ty, KIND, PTX))
    tl.store(odd + at, odd_of(words, odd.dtype.element_ty, KIND, PTX, SHIFT))


@pytest.mark.parametrize("like", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_every_pair(stored: torch.dtype, like: torch.dtype) -> None:
    each = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    both = torch.cartesian_prod(each, each).view(stored)
    even, odd = (torch.empty(len(both), dtype=like, device=DEVICE) for _ in range(2))
    how = pairs(both, like)
    assert (how.ptx is None) == (not CUDA or like == torch.float32)
    _unpack_kernel.launch(
        (len(both) // BLOCK, 1, 1),
        _unpack_kernel.arguments(
            stored=both, even=even, odd=odd, KIND=how.kind, PTX=how.ptx, SHIFT=how.shift, BLOCK=BLOCK
        ),
    )
    known = ~both.float().isnan()
    assert torch.equal(even[known[:, 0]], both[:, 0].to(like)[known[:, 0]])
    assert torch.equal(odd[known[:, 1]], both[:, 1].to(like)[known[:, 1]])
