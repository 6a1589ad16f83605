"""Chooses experts in one kernel, with one program per token."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.table import Routing
from lightllm_mp.kernels.triton.block_sizes import next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel


def route(logits: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    """Of equal weights the smallest expert comes first. A NaN counts as weight 0, so that experts are valid."""
    tokens, experts = logits.shape
    weights = torch.empty((tokens, routing.top_k), dtype=torch.float32, device=logits.device)
    numbers = torch.empty((tokens, routing.top_k), dtype=torch.int32, device=logits.device)
    if tokens:
        each = experts // routing.groups
        _route_kernel.launch(
            (tokens, 1, 1),
            _route_kernel.arguments(
                logits=logits,
                weights=weights,
                numbers=numbers,
                scale=routing.scale,
                EACH=each,
                EACH_PAD=next_power_of_2(each),
                GROUPS=routing.groups,
                GROUPS_PAD=next_power_of_2(routing.groups),
                TOP_GROUPS=routing.top_groups if routing.groups > 1 else 1,
                TOP_K=routing.top_k,
                TOP_PAD=next_power_of_2(routing.top_k),
                RENORMALISE=routing.renormalise,
            ),
            warps=1,
        )
    return weights, numbers


@kernel(numbers=["scale"])
def _route_kernel(
    logits,
    weights,
    numbers,
    scale,
    EACH: tl.constexpr,
    EACH_PAD: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_PAD: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_PAD: tl.constexpr,
    RENORMALISE: tl.constexpr,
):
    """A lane is an expert; lanes of a group are neighbours. Weights below 0 mark lanes that cannot be chosen."""
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, GROUPS_PAD * EACH_PAD)
    group, place = lane // EACH_PAD, lane % EACH_PAD
    inside = (group < GROUPS) & (place < EACH)
    score = tl.load(logits + token * (GROUPS * EACH) + group * EACH + place, mask=inside, other=float("-inf"))
    likely = tl.exp(score - tl.max(score, 0))
    likely /= tl.sum(likely, 0)
    likely = tl.where(inside, tl.where(likely >= 0.0, likely, 0.0), -2.0)
    if TOP_GROUPS < GROUPS:
        best = tl.max(tl.reshape(likely, (GROUPS_PAD, EACH_PAD)), 1)
        for _ in range(TOP_GROUPS):
            best = tl.where(tl.arange(0, GROUPS_PAD) == tl.argmax(best, 0), -3.0, best)
        best = tl.reshape(tl.broadcast_to(best[:, None], (GROUPS_PAD, EACH_PAD)), (GROUPS_PAD * EACH_PAD,))
        likely = tl.where(inside & (best > -3.0), -1.0, likely)
    rank = tl.arange(0, TOP_PAD)
    chosen, who = tl.zeros((TOP_PAD,), tl.float32), tl.zeros((TOP_PAD,), tl.int32)
    for i in range(TOP_K):
        pick = tl.argmax(likely, 0)
        chosen = tl.where(rank == i, tl.maximum(tl.max(likely, 0), 0.0), chosen)
        who = tl.where(rank == i, pick // EACH_PAD * EACH + pick % EACH_PAD, who)
        likely = tl.where(lane == pick, -4.0, likely)
    if RENORMALISE:
        chosen /= tl.sum(chosen, 0)
    tl.store(weights + token * TOP_K + rank, chosen * scale, mask=rank < TOP_K)
    tl.store(numbers + token * TOP_K + rank, who, mask=rank < TOP_K)
