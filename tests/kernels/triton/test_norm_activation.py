"""Norms of any width and activations in Triton against float32 reference ops."""

from __future__ import annotations

import pytest
import torch

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.table import Norm
from lightllm_mp.kernels.triton import norm_activation  # after the choice of the interpreter
from tests.kernels.triton.triton_case import DEVICE, DTYPES, close, random

REFERENCE = reference.TABLE


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "quick_gelu", "relu"])
@pytest.mark.parametrize("n", [33, 2050])
def test_activations(dtype, activation, n):
    x = random(3, 2 * n, dtype=dtype, scale=4.0)
    x[0, 0], x[1, 1], x[2, 2] = -200.0, 200.0, 0.0
    on_device = x.to(DEVICE)
    close(norm_activation.gated(on_device, activation), REFERENCE.gated(x.float(), activation))
    close(norm_activation.activate(on_device, activation), REFERENCE.activate(x.float(), activation))
    assert torch.equal(on_device.cpu(), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clamped_swiglu(dtype):
    x = random(3, 66, dtype=dtype, scale=6.0)
    close(norm_activation.gated(x.to(DEVICE), "swiglu_oai"), REFERENCE.gated(x.float(), "swiglu_oai"))


def test_nothing_to_do():
    assert norm_activation.activate(torch.empty(0, 8, device=DEVICE), "relu").shape == (0, 8)
    assert norm_activation.gated(torch.empty(0, 8, device=DEVICE), "relu").shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n", [2304, 8192, 16384])
@pytest.mark.parametrize(("kind", "biased"), [("rms", False), ("layer", True)])
def test_float32_weights_and_wide_rows(dtype, n, kind, biased):
    x, residual = random(3, n, dtype=dtype) + 1, random(3, n, dtype=dtype)
    by = Norm(torch.randn(n), 1e-6, torch.randn(n) if biased else None, kind)
    on_device = Norm(by.weight.to(DEVICE), by.eps, None if by.bias is None else by.bias.to(DEVICE), kind)
    close(norm_activation.norm(x.to(DEVICE), on_device), REFERENCE.norm(x.float(), by))
    got = norm_activation.add_norm(x.to(DEVICE), residual.to(DEVICE, copy=True), on_device)
    close(got, REFERENCE.norm((x + residual).float(), by))
