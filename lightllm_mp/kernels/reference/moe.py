"""Reference mixture of experts: gathers the tokens of one expert at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lightllm_mp.kernels.quantised import ScaledWeight
from lightllm_mp.kernels.reference.norm import gated
from lightllm_mp.kernels.reference.quantised import expanded
from lightllm_mp.kernels.table import ExpertBiases, Routing

NO_BIASES = ExpertBiases()

TINY = 1e-20
"""Added to a sum of weights before the division by it: a sigmoid may be 0."""


class Experts(NamedTuple):
    """Weights of all experts, plain or with scales."""

    gate_up: Tensor | ScaledWeight
    """[experts, 2 * n, k]"""
    down: Tensor | ScaledWeight
    """[experts, k, n]"""
    biases: ExpertBiases = NO_BIASES


def prepare_experts(
    gate_up: Tensor | ScaledWeight, down: Tensor | ScaledWeight, biases: ExpertBiases = NO_BIASES
) -> Experts:
    return Experts(gate_up, down, biases)


def route(logits: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    likely = logits.sigmoid() if routing.sigmoid else logits.softmax(-1)
    score = likely if routing.correction is None else likely + routing.correction
    if routing.groups > 1:
        score = _in_best_groups(score, routing)
    numbers = score.topk(routing.top_k, -1).indices
    weights = likely.gather(1, numbers)
    if routing.renormalise:
        weights = weights / (weights.sum(-1, keepdim=True) + TINY)
    return weights * routing.scale, numbers.int()


def _in_best_groups(score: Tensor, routing: Routing) -> Tensor:
    """Scores [tokens, experts], -inf outside of the groups that take part."""
    by_group = score.unflatten(-1, (routing.groups, -1))
    rank = by_group.topk(routing.group_best, -1).values.sum(-1)
    best = rank.topk(routing.top_groups, -1).indices
    outside = torch.ones_like(rank, dtype=torch.bool).scatter_(1, best, False)
    return by_group.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(-2)


def experts(x: Tensor, prepared: Experts, weights: Tensor, numbers: Tensor, activation: str) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    gate_up = prepared.gate_up
    own = (gate_up if isinstance(gate_up, Tensor) else gate_up.values).shape[0]
    for number in numbers.unique().tolist():
        if not 0 <= number < own:
            continue
        token, place = (numbers == number).nonzero(as_tuple=True)
        bias, down_bias = (None if one is None else one[number].to(x.dtype) for one in prepared.biases)
        hidden = gated(functional.linear(x[token], _of(prepared.gate_up, number, x.dtype), bias), activation)
        result = functional.linear(hidden, _of(prepared.down, number, x.dtype), down_bias).float()
        out.index_add_(0, token, result * weights[token, place].unsqueeze(-1))
    return out.to(x.dtype)


def _of(weights: Tensor | ScaledWeight, number: int, dtype: torch.dtype) -> Tensor:
    """The plain weight of one expert."""
    return weights[number] if isinstance(weights, Tensor) else expanded(weights.expert(number), dtype)
