"""Experts for very few tokens. Each token is multiplied alone, because the read of the weights limits the speed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.table import ExpertBiases
from lightllm_mp.kernels.triton.activations import ACTIVATIONS, gated
from lightllm_mp.kernels.triton.block_sizes import next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel
from lightllm_mp.kernels.triton.moe import tuned_moe
from lightllm_mp.kernels.triton.moe.expert_matrix import ExpertMatrix
from lightllm_mp.kernels.triton.moe.tuned_moe import AloneBlocks


def experts_alone(
    x: Tensor,
    gate_up: ExpertMatrix,
    down: ExpertMatrix,
    biases: ExpertBiases,
    weights: Tensor,
    numbers: Tensor,
    activation: str,
) -> Tensor:
    tokens, k = x.shape
    n, top_k = down.values.shape[2], numbers.shape[1]
    hidden, out = x.new_empty((tokens * top_k, n)), torch.empty_like(x)
    each, at, warps = _fitting(tuned_moe.ALONE_GATE_UP, k, gate_up.group)
    _gate_up_kernel.launch(
        (triton.cdiv(n, each), tokens * top_k, 1),
        _gate_up_kernel.arguments(
            x=x,
            weight=gate_up.values,
            scales=gate_up.values if gate_up.scales is None else gate_up.scales,
            bias=x if biases.gate_up is None else biases.gate_up,
            numbers=numbers,
            hidden=hidden,
            TOP_K=top_k,
            KIND=ACTIVATIONS[activation],
            BIASED=biases.gate_up is not None,
            EXPERTS=gate_up.experts,
            N=n,
            K=k,
            EACH=each,
            AT=at,
            GROUP=gate_up.group,
        ),
        warps=warps,
    )
    each, at, warps = _fitting(tuned_moe.ALONE_DOWN, n, down.group)
    _down_kernel.launch(
        (triton.cdiv(k, each), tokens, 1),
        _down_kernel.arguments(
            hidden=hidden,
            weight=down.values,
            scales=down.values if down.scales is None else down.scales,
            bias=x if biases.down is None else biases.down,
            weights=weights,
            numbers=numbers,
            out=out,
            TOP_K=top_k,
            BIASED=biases.down is not None,
            EXPERTS=down.experts,
            N=k,
            K=n,
            EACH=each,
            AT=at,
            GROUP=down.group,
        ),
        warps=warps,
    )
    return out


def _fitting(blocks: AloneBlocks, inputs: int, group: int) -> AloneBlocks:
    """Blocks with the same work per thread if there are fewer inputs than the block holds; at least one group of
    inputs."""
    at = max(min(blocks.inputs, next_power_of_2(inputs)), group)
    return AloneBlocks(blocks.outputs, at, max(1, blocks.warps * at // blocks.inputs))


@kernel()
def _gate_up_kernel(
    x,
    weight,
    scales,
    bias,
    numbers,
    hidden,
    TOP_K: tl.constexpr,
    KIND: tl.constexpr,
    BIASED: tl.constexpr,
    EXPERTS: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    EACH: tl.constexpr,
    AT: tl.constexpr,
    GROUP: tl.constexpr,
):
    assignment = tl.program_id(1)
    expert = tl.load(numbers + assignment).to(tl.int64)
    if (expert < 0) | (expert >= EXPERTS):
        return
    n = tl.program_id(0) * EACH + tl.arange(0, EACH)
    line = weight + expert * (2 * N * K) + tl.minimum(n, N - 1)[:, None] * K
    PARTS: tl.constexpr = AT // GROUP if GROUP else AT
    GROUPS: tl.constexpr = (K + GROUP - 1) // GROUP if GROUP else 0
    gate, up = tl.zeros((EACH, PARTS), tl.float32), tl.zeros((EACH, PARTS), tl.float32)
    scales += expert * (GROUPS * 2 * N) + tl.minimum(n, N - 1)[:, None]
    for start in tl.static_range(0, K, AT):
        k = start + tl.arange(0, AT)[None, :]
        value = tl.load(x + assignment // TOP_K * K + k, mask=k < K, other=0.0).to(tl.float32)
        of_gate = value * tl.load(line + k, mask=k < K, other=0.0).to(tl.float32)
        of_up = value * tl.load(line + N * K + k, mask=k < K, other=0.0).to(tl.float32)
        gate += _scaled(of_gate, scales, start, 2 * N, K, AT, GROUP)
        up += _scaled(of_up, scales + N, start, 2 * N, K, AT, GROUP)
    gates, ups = tl.sum(gate, 1), tl.sum(up, 1)
    if BIASED:
        bias += expert * (2 * N) + tl.minimum(n, N - 1)
        gates += tl.load(bias).to(tl.float32)
        ups += tl.load(bias + N).to(tl.float32)
    result = gated(gates, ups, KIND)
    tl.store(hidden + assignment * N + n, result.to(hidden.dtype.element_ty), mask=n < N)


@kernel()
def _down_kernel(
    hidden,
    weight,
    scales,
    bias,
    weights,
    numbers,
    out,
    TOP_K: tl.constexpr,
    BIASED: tl.constexpr,
    EXPERTS: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    EACH: tl.constexpr,
    AT: tl.constexpr,
    GROUP: tl.constexpr,
):
    token = tl.program_id(1)
    n = tl.program_id(0) * EACH + tl.arange(0, EACH)
    line = weight + tl.minimum(n, N - 1)[:, None] * K
    PARTS: tl.constexpr = AT // GROUP if GROUP else AT
    GROUPS: tl.constexpr = (K + GROUP - 1) // GROUP if GROUP else 0
    total = tl.zeros((EACH, PARTS), tl.float32)
    added = tl.zeros((EACH,), tl.float32)
    for i in tl.static_range(TOP_K):
        assignment = token * TOP_K + i
        expert = tl.load(numbers + assignment).to(tl.int64)
        here = (expert >= 0) & (expert < EXPERTS)  # else no program has written `hidden`
        expert = tl.where(here, expert, 0)
        of_expert = line + expert * (N * K)
        scale_at = scales + expert * (GROUPS * N) + tl.minimum(n, N - 1)[:, None]
        sums = tl.zeros((EACH, PARTS), tl.float32)
        for start in tl.static_range(0, K, AT):
            k = start + tl.arange(0, AT)[None, :]
            value = tl.load(hidden + assignment * K + k, mask=k < K, other=0.0).to(tl.float32)
            products = tl.where(here, value, 0.0) * tl.load(of_expert + k, mask=k < K, other=0.0).to(tl.float32)
            sums += _scaled(products, scale_at, start, N, K, AT, GROUP)
        share = tl.load(weights + assignment)
        total += sums * share
        if BIASED:
            own = tl.load(bias + expert * N + tl.minimum(n, N - 1)).to(tl.float32)
            added += tl.where(here, share, 0.0) * own
    tl.store(out + token * N + n, (tl.sum(total, 1) + added).to(out.dtype.element_ty), mask=n < N)


@triton.jit
def _scaled(products, scales, start, outputs, K: tl.constexpr, AT: tl.constexpr, GROUP: tl.constexpr):
    """Sums products [outputs, AT], from input `start` on, by groups of inputs and scales them; without GROUP they stay
    as they are. `scales` points at an output's scale of the first group."""
    if GROUP:
        sums = tl.sum(tl.reshape(products, (products.shape[0], AT // GROUP, GROUP)), 2)
        group = start // GROUP + tl.arange(0, AT // GROUP)[None, :]
        products = sums * tl.load(scales + group * outputs, mask=group * GROUP < K, other=0.0)
    return products
