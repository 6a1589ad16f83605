"""Reference mixture of experts: gathers the tokens of one expert at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lightllm_mp.kernels.reference.norm import gated
from lightllm_mp.kernels.table import ExpertBiases, Routing

NO_BIASES = ExpertBiases()


class Experts(NamedTuple):
    """Plain weights of all experts."""

    gate_up: Tensor
    """[experts, 2 * n, k]"""
    down: Tensor
    """[experts, k, n]"""
    biases: ExpertBiases = NO_BIASES


def prepare_experts(gate_up: Tensor, down: Tensor, biases: ExpertBiases = NO_BIASES) -> Experts:
    return Experts(gate_up, down, biases)


def route(logits: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    likely = logits.softmax(-1)
    if routing.groups > 1:
        tokens, experts = likely.shape
        by_group = likely.view(tokens, routing.groups, experts // routing.groups)
        best = by_group.amax(-1).topk(routing.top_groups, -1).indices
        inside = torch.zeros(tokens, routing.groups, dtype=torch.bool, device=likely.device).scatter_(1, best, True)
        likely = by_group.masked_fill(~inside.unsqueeze(-1), 0.0).view(tokens, experts)
    weights, numbers = likely.topk(routing.top_k, -1)
    if routing.renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * routing.scale, numbers.int()


def experts(x: Tensor, prepared: Experts, weights: Tensor, numbers: Tensor, activation: str) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for number in numbers.unique().tolist():
        token, place = (numbers == number).nonzero(as_tuple=True)
        bias, down_bias = (None if one is None else one[number].to(x.dtype) for one in prepared.biases)
        hidden = gated(functional.linear(x[token], prepared.gate_up[number], bias), activation)
        result = functional.linear(hidden, prepared.down[number], down_bias).float()
        out.index_add_(0, token, result * weights[token, place].unsqueeze(-1))
    return out.to(x.dtype)
