"""Reference normalisation and activation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from lightllm_mp.kernels.table import Norm

SWIGLU_LIMIT = 7.0
"""Limit of `swiglu_oai`: of the gate above, of the other half on both sides."""


def norm(x: Tensor, by: Norm) -> Tensor:
    wide = x.float()
    if by.kind == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    if by.mean_squares is None:
        spread = wide.square().mean(-1, keepdim=True)
    else:
        spread = by.mean_squares.view(-1, *[1] * (x.dim() - 1))
    wide = wide * (spread + by.eps).rsqrt() * by.weight.float()
    return (wide if by.bias is None else wide + by.bias.float()).to(x.dtype)


def add_norm(x: Tensor, residual: Tensor, by: Norm) -> Tensor:
    residual.add_(x)
    return norm(residual, by)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    if activation == "swiglu_oai":
        gate, up, activation = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT) + 1, "quick_gelu"
    return (_ACTIVATIONS[activation](gate) * up).to(gate_up.dtype)


def sigmoid_gated(x: Tensor, gate: Tensor) -> Tensor:
    return (x.float() * gate.float().sigmoid()).to(x.dtype)


def activate(x: Tensor, activation: str) -> Tensor:
    return _ACTIVATIONS[activation](x.float()).to(x.dtype)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * (1.702 * x).sigmoid()


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": functional.relu,
}
