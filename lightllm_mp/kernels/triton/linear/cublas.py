"""Projections of many rows with cuBLAS, through torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def matmul(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x [rows, k] @ weight.T + bias in `dtype`; float32 sums of 16-bit operands are not rounded before the bias."""
    if dtype == x.dtype:
        return functional.linear(x, weight, bias)
    if x.is_cuda:
        out = torch.mm(x, weight.t(), out_dtype=dtype)
    else:
        out = torch.mm(x.to(dtype), weight.to(dtype).t())
    return out if bias is None else out.add_(bias)
