"""Mixture of experts in the C extension. It gathers tokens by expert and sums the experts of each token in the token's
own order, so a result is bitwise independent of other tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.cpu.quantised import prepare_quantised
from lightllm_mp.kernels.cpu.runtime import native
from lightllm_mp.kernels.cpu.values import CURVES, TYPES, float_bits
from lightllm_mp.kernels.quantised import ScaledWeight
from lightllm_mp.kernels.reference.moe import NO_BIASES
from lightllm_mp.kernels.reference.quantised import expanded
from lightllm_mp.kernels.table import ExpertBiases, ExpertWeights, Routing

MAX_EXPERTS = 1024

_c = native()


class PlainExperts(NamedTuple):
    """Plain weights in the extension's panel order, expert after expert."""

    packed: Tensor
    """uint8 [experts, bytes]"""
    bias: Tensor | None
    """float32 [experts, outputs]"""
    k: int
    """Inputs."""

    @property
    def number(self) -> int:
        return self.packed.shape[0]

    @property
    def address(self) -> int:
        return self.packed.data_ptr()

    @property
    def bias_address(self) -> int:
        return 0 if self.bias is None else self.bias.data_ptr()

    @property
    def parts(self) -> int:
        return 0


class QuantisedExperts(NamedTuple):
    """Weights that stay quantised. All experts have the same number of parts."""

    packed: tuple[tuple[Tensor, ...], ...]
    """Packed parts of each expert."""
    bias: Tensor | None
    """As in `PlainExperts`; `table` contains its addresses."""
    table: Tensor
    """int64 [experts, parts, 5]: `struct quantised` of native.h."""
    k: int
    bias_address: int = 0

    @property
    def number(self) -> int:
        return self.table.shape[0]

    @property
    def address(self) -> int:
        return self.table.data_ptr()

    @property
    def parts(self) -> int:
        return self.table.shape[1]


class PackedExperts(NamedTuple):
    """All experts' weights in the form of the extension."""

    gate_up: PlainExperts | QuantisedExperts
    down: PlainExperts | QuantisedExperts


def route(logits: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    """As `OpTable.route`; of equal scores the smaller expert number comes first."""
    m, experts = logits.shape
    if experts > MAX_EXPERTS:
        return reference.TABLE.route(logits, routing)
    weights = torch.empty((m, routing.top_k), dtype=torch.float32)
    numbers = torch.empty((m, routing.top_k), dtype=torch.int32)
    _c.route(
        logits.data_ptr(),
        0 if routing.correction is None else routing.correction.data_ptr(),
        weights.data_ptr(),
        numbers.data_ptr(),
        m,
        experts,
        routing.top_k,
        routing.groups,
        routing.top_groups,
        routing.group_best,
        routing.sigmoid,
        routing.renormalise,
        float_bits(routing.scale),
    )
    return weights, numbers


def prepare_experts(gate_up: ExpertWeights, down: ExpertWeights, biases: ExpertBiases = NO_BIASES) -> PackedExperts:
    """Packs the weights. Each is [experts, n, k], plain or with scales, or a tuple of blocks or 4-bit groups per
    expert."""
    return PackedExperts(_prepared(gate_up, biases.gate_up), _prepared(down, biases.down))


def _prepared(weights: ExpertWeights, bias: Tensor | None) -> PlainExperts | QuantisedExperts:
    bias = None if bias is None else bias.float().contiguous()
    if isinstance(weights, Tensor):
        return PlainExperts(_packed(weights), bias, weights.shape[2])
    if isinstance(weights, ScaledWeight):
        weights = tuple(weights.expert(number) for number in range(len(weights.values)))
    each = [prepare_quantised(weight, None if bias is None else bias[i]) for i, weight in enumerate(weights)]
    packed = [one for one in each if one is not None]
    shuffled = any(one.order is not None for one in packed)
    if shuffled or len(packed) < len(each) or len({one.parts.shape for one in packed}) > 1:
        # The weights have no packed form, or another order of inputs, or an uneven cut of a rank's padded part.
        whole = torch.stack([expanded(weight, torch.bfloat16) for weight in weights])
        return PlainExperts(_packed(whole), bias, whole.shape[2])
    table = torch.stack([one.parts for one in packed])
    return QuantisedExperts(tuple(one.packed for one in packed), bias, table, packed[0].k)


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
            prepared.gate_up.address,
            prepared.down.address,
            prepared.gate_up.bias_address,
            prepared.down.bias_address,
            prepared.gate_up.parts,
            prepared.down.parts,
            weights.data_ptr(),
            numbers.data_ptr(),
            out.data_ptr(),
            m,
            k,
            prepared.down.k,
            prepared.gate_up.number,
            numbers.shape[1],
            CURVES[activation],
            TYPES[x.dtype],
        )
    return out
