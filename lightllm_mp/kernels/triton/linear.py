"""Projections: cuBLAS through torch."""

from __future__ import annotations

import torch
from torch import Tensor

from lightllm_mp.kernels.reference.linear import PlainLinear


def linear_float(x: Tensor, prepared: PlainLinear) -> Tensor:
    """A product of 16-bit operands keeps cuBLAS's float32 sums as they are."""
    weight, bias = prepared
    if x.dtype == torch.float32 or not x.is_cuda:
        out = torch.mm(x.float(), weight.float().t())
    else:
        out = torch.mm(x, weight.t(), out_dtype=torch.float32)
    return out if bias is None else out.add_(bias)
