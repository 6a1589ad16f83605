"""Projections of plain and quantised weights. With a plain weight, a single token has its own kernel and more tokens go
to cuBLAS: no kernel for few rows was faster (`tools.bench.kernels.linear`)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.triton.launch import kernel, wait_for_inputs
from lightllm_mp.kernels.triton.linear import quantised
from lightllm_mp.kernels.triton.linear.cublas import matmul
from lightllm_mp.kernels.triton.linear.few_rows import Streamed, counters, prefetch

OUTPUTS_EACH, INPUTS_EACH, WARPS = 1, 2048, 8
"""Outputs per program, inputs that a program reads at a time, and its warps."""


def prepare_linear(weight: Tensor, bias: Tensor | None) -> Streamed:
    return Streamed(weight, bias, counters(weight.shape[0], weight.device))


def linear(x: Tensor, prepared: Streamed) -> Tensor:
    return _product(x, prepared, x.dtype)


def linear_float(x: Tensor, prepared: Streamed) -> Tensor:
    """The float32 sums of 16-bit operands are not rounded."""
    return _product(x, prepared, torch.float32)


def _product(x: Tensor, prepared: Streamed, dtype: torch.dtype) -> Tensor:
    if prepared.scales is not None:
        return quantised.product(x, prepared, dtype)
    if x.shape[0] == 1 and x.dtype != torch.float32:
        return of_one_token(x, prepared, dtype)
    return matmul(x, prepared.weight, prepared.bias, dtype)


def of_one_token(x: Tensor, prepared: Streamed, dtype: torch.dtype) -> Tensor:
    weight, bias = prepared.weight, prepared.bias
    n, k = weight.shape
    out = torch.empty((1, n), dtype=dtype, device=x.device)
    _one_token_kernel.launch(
        (triton.cdiv(n, OUTPUTS_EACH), 1, 1),
        _one_token_kernel.arguments(
            x=x,
            weight=weight,
            bias=weight if bias is None else bias,
            out=out,
            N=n,
            K=k,
            BIASED=bias is not None,
            EACH=OUTPUTS_EACH,
            AT=INPUTS_EACH,
        ),
        warps=WARPS,
    )
    return out


@kernel(waits=True)
def _one_token_kernel(
    x,
    weight,
    bias,
    out,
    N: tl.constexpr,
    K: tl.constexpr,
    BIASED: tl.constexpr,
    EACH: tl.constexpr,
    AT: tl.constexpr,
    EARLY: tl.constexpr,
):
    n = tl.program_id(0) * EACH + tl.arange(0, EACH)
    if EARLY:
        prefetch(weight, n, 0, N, K)
    wait_for_inputs(EARLY)
    lines = weight + n.to(tl.int64)[:, None] * K
    sums = tl.zeros([EACH, AT], tl.float32)
    for base in range(0, K, AT):
        k = base + tl.arange(0, AT)
        inside = (n < N)[:, None] & (k < K)[None, :]
        w = tl.load(lines + k[None, :], mask=inside, other=0.0)
        sums += w.to(tl.float32) * tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    result = tl.sum(sums, 1)
    if BIASED:
        result += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out + n, result.to(out.dtype.element_ty), mask=n < N)
