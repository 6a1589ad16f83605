"""The Triton ops against float32 reference ops on random data: on a GPU if there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.table import Norm
from lightllm_mp.kernels.triton import overlay  # after the choice of the interpreter
from tests.kernels.triton.triton_case import CUDA, DEVICE, DTYPES, close, random

TRITON, REFERENCE = overlay.TABLE, reference.TABLE


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [7, 64, 100, 4096])
@pytest.mark.parametrize(("kind", "biased"), [("rms", False), ("layer", False), ("layer", True)])
def test_norms(dtype, n, kind, biased):
    x, residual, weight = random(5, n, dtype=dtype), random(5, n, dtype=dtype), random(n, dtype=dtype)
    bias = random(n, dtype=dtype) if biased else None
    by = Norm(weight.float(), 1e-5, None if bias is None else bias.float(), kind)
    on_gpu = Norm(weight.to(DEVICE), 1e-5, None if bias is None else bias.to(DEVICE), kind)
    got = TRITON.norm(x.to(DEVICE), on_gpu)
    close(got, REFERENCE.norm(x.float(), by))
    mine = residual.to(DEVICE, copy=True)
    got = TRITON.add_norm(x.to(DEVICE), mine, on_gpu)
    residual += x
    close(got, REFERENCE.norm(residual.float(), by))
    assert torch.equal(mine.cpu(), residual) or (not CUDA and dtype == torch.bfloat16)  # interpreted, it truncates
    close(mine, residual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [64, 100, 2050])
def test_gated(dtype, n):
    gate_up = random(5, 2 * n, dtype=dtype, scale=4.0)
    gate_up[0, 0], gate_up[1, 1] = -200.0, 200.0
    close(TRITON.gated(gate_up.to(DEVICE), "silu"), REFERENCE.gated(gate_up.float(), "silu"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("tokens", "n", "k"), [(9, 40, 96), (1, 40, 96), (1, 33, 1500)])
def test_linear(dtype, biased, tokens, n, k):
    x, weight = random(tokens, k, dtype=dtype), random(n, k, dtype=dtype, scale=k**-0.5)
    bias = random(n, dtype=dtype) if biased else None
    prepared = TRITON.prepare_linear(weight.to(DEVICE), None if bias is None else bias.to(DEVICE))
    plain = REFERENCE.prepare_linear(weight.float(), None if bias is None else bias.float())
    expected = REFERENCE.linear(x.float(), plain)
    close(TRITON.linear(x.to(DEVICE), prepared), expected)
    logits = TRITON.linear_float(x.to(DEVICE), prepared)
    assert logits.dtype == torch.float32
    close(logits, expected)
