"""Chooses experts in one kernel, with one program per token."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.table import Routing
from lightllm_mp.kernels.triton.block_sizes import next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel


def route(logits: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
    """As `OpTable.route`. Of equal scores the smallest expert number comes first. A NaN counts as weight 0, so that the
    experts are always valid."""
    tokens, experts = logits.shape
    weights = torch.empty((tokens, routing.top_k), dtype=torch.float32, device=logits.device)
    numbers = torch.empty((tokens, routing.top_k), dtype=torch.int32, device=logits.device)
    if tokens:
        each = experts // routing.groups
        _route_kernel.launch(
            (tokens, 1, 1),
            _route_kernel.arguments(
                logits=logits,
                correction=logits if routing.correction is None else routing.correction,
                weights=weights,
                numbers=numbers,
                scale=routing.scale,
                EACH=each,
                EACH_PAD=next_power_of_2(each),
                GROUPS=routing.groups,
                GROUPS_PAD=next_power_of_2(routing.groups),
                TOP_GROUPS=routing.top_groups if routing.groups > 1 else 1,
                GROUP_BEST=routing.group_best,
                TOP_K=routing.top_k,
                TOP_PAD=next_power_of_2(routing.top_k),
                SIGMOID=routing.sigmoid,
                CORRECTED=routing.correction is not None,
                RENORMALISE=routing.renormalise,
            ),
            warps=1,
        )
    return weights, numbers


@kernel(numbers=["scale"])
def _route_kernel(
    logits,
    correction,
    weights,
    numbers,
    scale,
    EACH: tl.constexpr,
    EACH_PAD: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_PAD: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    GROUP_BEST: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_PAD: tl.constexpr,
    SIGMOID: tl.constexpr,
    CORRECTED: tl.constexpr,
    RENORMALISE: tl.constexpr,
):
    """A lane is an expert; lanes of a group are neighbours. A score of -inf marks lanes that cannot be chosen."""
    token = tl.program_id(0).to(tl.int64)
    never = float("-inf")
    lane = tl.arange(0, GROUPS_PAD * EACH_PAD)
    group, place = lane // EACH_PAD, lane % EACH_PAD
    expert = group * EACH + place
    inside = (group < GROUPS) & (place < EACH)
    logit = tl.load(logits + token * (GROUPS * EACH) + expert, mask=inside, other=never)
    if SIGMOID:
        likely = 1.0 / (1.0 + tl.exp(-logit))
    else:
        likely = tl.exp(logit - tl.max(logit, 0))
        likely /= tl.sum(likely, 0)
    likely = tl.where(likely >= 0.0, likely, 0.0)
    score = likely
    if CORRECTED:
        score += tl.load(correction + expert, mask=inside, other=0.0)
    score = tl.where(inside, score, never)
    if TOP_GROUPS < GROUPS:
        by_group, groups = tl.reshape(score, (GROUPS_PAD, EACH_PAD)), tl.arange(0, GROUPS_PAD)
        best = tl.max(by_group, 1)
        if GROUP_BEST == 2:
            first = tl.arange(0, EACH_PAD)[None, :] == tl.argmax(by_group, 1)[:, None]
            best += tl.max(tl.where(first, never, by_group), 1)
        kept = tl.zeros((GROUPS_PAD,), tl.int32)
        for _ in range(TOP_GROUPS):
            pick = tl.argmax(best, 0)
            kept = tl.where(groups == pick, 1, kept)
            best = tl.where(groups == pick, never, best)
        kept = tl.reshape(tl.broadcast_to(kept[:, None], (GROUPS_PAD, EACH_PAD)), (GROUPS_PAD * EACH_PAD,))
        score = tl.where(kept == 1, score, never)
    rank = tl.arange(0, TOP_PAD)
    chosen, who = tl.zeros((TOP_PAD,), tl.float32), tl.zeros((TOP_PAD,), tl.int32)
    for i in range(TOP_K):
        pick = tl.argmax(score, 0)
        chosen = tl.where(rank == i, tl.sum(tl.where(lane == pick, likely, 0.0), 0), chosen)
        who = tl.where(rank == i, pick // EACH_PAD * EACH + pick % EACH_PAD, who)
        score = tl.where(lane == pick, never, score)
    if RENORMALISE:
        chosen /= tl.sum(chosen, 0) + 1e-20
    tl.store(weights + token * TOP_K + rank, chosen * scale, mask=rank < TOP_K)
    tl.store(numbers + token * TOP_K + rank, who, mask=rank < TOP_K)
