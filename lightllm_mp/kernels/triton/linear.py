"""Projections: cuBLAS through torch, but for a single token, where reading the weight is all there is to do."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.reference.linear import PlainLinear
from lightllm_mp.kernels.triton.launch import Kernel

OUTPUTS_EACH, INPUTS_EACH, WARPS = 1, 2048, 8
"""Outputs of a program, inputs that it reads at a time, and its warps."""


def linear(x: Tensor, prepared: PlainLinear) -> Tensor:
    if x.shape[0] == 1 and x.dtype != torch.float32:
        return _of_one_token(x, prepared, x.dtype)
    return reference.TABLE.linear(x, prepared)


def linear_float(x: Tensor, prepared: PlainLinear) -> Tensor:
    """A product of 16-bit operands keeps its float32 sums as they are."""
    weight, bias = prepared
    if x.shape[0] == 1 and x.dtype != torch.float32:
        return _of_one_token(x, prepared, torch.float32)
    if x.dtype == torch.float32 or not x.is_cuda:
        out = torch.mm(x.float(), weight.float().t())
    else:
        out = torch.mm(x, weight.t(), out_dtype=torch.float32)
    return out if bias is None else out.add_(bias)


def _of_one_token(x: Tensor, prepared: PlainLinear, dtype: torch.dtype) -> Tensor:
    weight, bias = prepared
    n, k = weight.shape
    out = torch.empty((1, n), dtype=dtype, device=x.device)
    _ONE.launch(
        (triton.cdiv(n, OUTPUTS_EACH), 1, 1),
        (x, weight, weight if bias is None else bias, out),
        (),
        (n, k, bias is not None, OUTPUTS_EACH, INPUTS_EACH),
        warps=WARPS,
    )
    return out


@triton.jit
def _one_token_kernel(
    x, weight, bias, out, N: tl.constexpr, K: tl.constexpr, BIASED: tl.constexpr, EACH: tl.constexpr, AT: tl.constexpr
):
    n = tl.program_id(0) * EACH + tl.arange(0, EACH)
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


_ONE = Kernel(_one_token_kernel)
