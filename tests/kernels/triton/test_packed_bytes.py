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
def _unpack_kernel(
    stored,
    even,
    odd,
    KIND: tl.constexpr,
    EVEN: tl.constexpr,
    ODD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(as_words(stored) + at)
    tl.store(even + at, even_of(words, even.dtype.element_ty, KIND, EVEN))
    tl.store(odd + at, odd_of(words, odd.dtype.element_ty, KIND, ODD))


@pytest.mark.parametrize("before", [False, True], ids=["", "without conversion of fp8"])
@pytest.mark.parametrize("like", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_every_pair(stored: torch.dtype, like: torch.dtype, before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if before:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (8, 0))
    each = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    both = torch.cartesian_prod(each, each).view(stored)
    even, odd = (torch.empty(len(both), dtype=like, device=DEVICE) for _ in range(2))
    how = pairs(both, like)
    assert (how.even is None) == (how.odd is None) == (not CUDA or like == torch.float32)
    _unpack_kernel.launch(
        (len(both) // BLOCK, 1, 1),
        _unpack_kernel.arguments(
            stored=both,
            even=even,
            odd=odd,
            KIND=how.kind,
            EVEN=how.even,
            ODD=how.odd,
            BLOCK=BLOCK,
        ),
    )
    known = ~both.float().isnan()
    for i, got in enumerate((even, odd)):
        assert torch.equal((got.float() * how.factor - how.offset)[known[:, i]], both[:, i].float()[known[:, i]])
