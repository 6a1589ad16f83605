"""Mixture of experts over the C extension: products of tokens collected by expert, a token's experts summed in its own
order, so that no other token changes a bit of its result."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.cpu.runtime import native
from lightllm_mp.kernels.cpu.values import CURVES, TYPES, float_bits
from lightllm_mp.kernels.table import Routing

MAX_EXPERTS = 1024

_c = native()


class PackedExperts(NamedTuple):
    """All experts' weights in the extension's panel order, expert after expert: uint8 [experts, bytes]."""

    gate_up: Tensor
    down: Tensor
    n: int
    """Width between the two products."""


def route(logits: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    """Of equal weights the smallest number comes first."""
    m, experts = logits.shape
    if experts > MAX_EXPERTS:
        return reference.TABLE.route(logits, routing)
    weights = torch.empty((m, routing.top_k), dtype=torch.float32)
    numbers = torch.empty((m, routing.top_k), dtype=torch.int32)
    _c.route(
        logits.data_ptr(),
        weights.data_ptr(),
        numbers.data_ptr(),
        m,
        experts,
        routing.top_k,
        routing.groups,
        routing.top_groups,
        routing.renormalise,
        float_bits(routing.scale),
    )
    return weights, numbers


def prepare_experts(gate_up: Tensor, down: Tensor) -> PackedExperts:
    return PackedExperts(_packed(gate_up), _packed(down), down.shape[2])


def _packed(weight: Tensor) -> Tensor:
    experts, n, k = weight.shape
    kind = TYPES[weight.dtype]
    packed = torch.empty((experts, _c.packed_bytes(n, k, kind)), dtype=torch.uint8)
    for one, to in zip(weight, packed, strict=True):
        source = one.contiguous()
        _c.pack(source.data_ptr(), to.data_ptr(), n, k, kind)
    return packed


def experts(x: Tensor, prepared: PackedExperts, weights: Tensor, numbers: Tensor, activation: str) -> Tensor:
    m, k = x.shape
    out = torch.empty_like(x)
    if m:
        _c.experts(
            x.data_ptr(),
            prepared.gate_up.data_ptr(),
            prepared.down.data_ptr(),
            weights.data_ptr(),
            numbers.data_ptr(),
            out.data_ptr(),
            m,
            k,
            prepared.n,
            prepared.gate_up.shape[0],
            numbers.shape[1],
            CURVES[activation],
            TYPES[x.dtype],
        )
    return out
