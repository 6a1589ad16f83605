"""The ops of a tower: the C extension's on a CPU, torch's own on CUDA, where images are large enough for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.select import op_table
from lightllm_mp.kernels.table import Norm, OpTable


def tower_ops(device: torch.device, dtype: torch.dtype) -> OpTable:
    """The op table for towers of this dtype on this device. Raises ConfigError as `op_table`."""
    return op_table(device, dtype) if device.type == "cpu" else TORCH


def norm(x: Tensor, by: Norm) -> Tensor:
    if by.kind == "layer":
        return F.layer_norm(x, x.shape[-1:], by.weight, by.bias, by.eps)
    wide = x.float()
    return (by.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + by.eps)).to(x.dtype)).to(x.dtype)


def add_norm(x: Tensor, residual: Tensor, by: Norm) -> Tensor:
    return norm(residual.add_(x), by)


def activate(x: Tensor, activation: str) -> Tensor:
    return _ACTIVATIONS[activation](x)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    gate, up = gate_up.chunk(2, dim=1)
    return _ACTIVATIONS[activation](gate) * up


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}

TORCH = replace(reference.TABLE, name="torch", norm=norm, add_norm=add_norm, activate=activate, gated=gated)
"""torch's ops, in the dtype of the tower, with few kernels."""
