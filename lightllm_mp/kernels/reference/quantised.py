"""The exact definitions of quantised weights: their values, and how plain weights are quantised."""

from __future__ import annotations

from typing import Literal

import torch
from gguf.quants import dequantize
from torch import Tensor

from lightllm_mp.kernels.quantised import BlockWeight, GroupedWeight, QuantisedWeight, ScaledWeight
from lightllm_mp.kernels.reference.linear import PlainLinear, prepare_linear

Kind = Literal["int8", "fp8"]
LARGEST = {"int8": 127.0, "fp8": 448.0}
"""Largest value of int8 (symmetric: -128 is not used) and of float8 e4m3."""


def quantise(weight: Tensor, kind: Kind) -> ScaledWeight:
    """Quantises [n, k] of any floating type. The largest magnitude of each output becomes the type's largest value.

    int8 rounds to the nearest, ties to even; fp8 as torch casts to float8_e4m3fn.
    """
    wide = weight.float()
    scales = wide.abs().amax(1, keepdim=True) / LARGEST[kind]
    scales = torch.where(scales > 0, scales, 1.0)
    wide = (wide / scales).clamp_(-LARGEST[kind], LARGEST[kind])
    values = wide.round_().to(torch.int8) if kind == "int8" else wide.to(torch.float8_e4m3fn)
    return ScaledWeight(values, scales)


def quantise_activations(x: Tensor, group: int) -> ScaledWeight:
    """Rows [rows, k] as the products of 8-bit floats take them: the largest magnitude of each `group` inputs of a row
    becomes the type's largest value. `group` divides k."""
    rows, k = x.shape
    found = quantise(x.reshape(-1, group), "fp8")
    return ScaledWeight(found.values.view(rows, k), found.scales.view(rows, k // group), group)


def expanded(weight: QuantisedWeight, dtype: torch.dtype) -> Tensor:
    """The values [n, k] of a quantised weight, computed in float32 and rounded once to `dtype`."""
    if isinstance(weight, BlockWeight):
        parts = (torch.from_numpy(dequantize(part.rows.cpu().numpy(), part.type)) for part in weight.parts)
        return torch.cat([part.to(dtype) for part in parts])
    if isinstance(weight, GroupedWeight):
        groups = weight.group_of.long()
        codes = weight.codes.float() - weight.zeros.float()[:, groups]
        return (codes * weight.scales.float()[:, groups]).to(dtype)
    scales = weight.scales
    if scales.shape[-1] > 1:
        scales = scales.repeat_interleave(weight.group, -1)[..., : weight.values.shape[-1]]
    return (weight.values.float() * scales).to(dtype)


def prepare_quantised(weight: QuantisedWeight, bias: Tensor | None, dtype: torch.dtype) -> PlainLinear:
    """The expanded weight."""
    return prepare_linear(expanded(weight, dtype), bias)
