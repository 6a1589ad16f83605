"""Experts for very few tokens: each token is multiplied alone, because reading the weights takes all the time."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.table import ExpertBiases
from lightllm_mp.kernels.triton.activations import ACTIVATIONS, gated
from lightllm_mp.kernels.triton.block_sizes import next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel
from lightllm_mp.kernels.triton.moe.tuned_moe import ALONE_DOWN, ALONE_GATE_UP, AloneBlocks


def experts_alone(
    x: Tensor, gate_up: Tensor, down: Tensor, biases: ExpertBiases, weights: Tensor, numbers: Tensor, activation: str
) -> Tensor:
    tokens, k = x.shape
    n, top_k = down.shape[2], numbers.shape[1]
    hidden, out = x.new_empty((tokens * top_k, n)), torch.empty_like(x)
    each, at, warps = _fitting(ALONE_GATE_UP, k)
    _gate_up_kernel.launch(
        (triton.cdiv(n, each), tokens * top_k, 1),
        _gate_up_kernel.arguments(
            x=x,
            weight=gate_up,
            bias=x if biases.gate_up is None else biases.gate_up,
            numbers=numbers,
            hidden=hidden,
            TOP_K=top_k,
            KIND=ACTIVATIONS[activation],
            BIASED=biases.gate_up is not None,
            EXPERTS=gate_up.shape[0],
            N=n,
            K=k,
            EACH=each,
            AT=at,
        ),
        warps=warps,
    )
    each, at, warps = _fitting(ALONE_DOWN, n)
    _down_kernel.launch(
        (triton.cdiv(k, each), tokens, 1),
        _down_kernel.arguments(
            hidden=hidden,
            weight=down,
            bias=x if biases.down is None else biases.down,
            weights=weights,
            numbers=numbers,
            out=out,
            TOP_K=top_k,
            BIASED=biases.down is not None,
            EXPERTS=down.shape[0],
            N=k,
            K=n,
            EACH=each,
            AT=at,
        ),
        warps=warps,
    )
    return out


def _fitting(blocks: AloneBlocks, inputs: int) -> AloneBlocks:
    """The same work per thread where there are fewer inputs than the block holds."""
    at = min(blocks.inputs, next_power_of_2(inputs))
    return AloneBlocks(blocks.outputs, at, max(1, blocks.warps * at // blocks.inputs))


@kernel()
def _gate_up_kernel(
    x,
    weight,
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
):
    assignment = tl.program_id(1)
    expert = tl.load(numbers + assignment).to(tl.int64)
    if (expert < 0) | (expert >= EXPERTS):
        return
    n = tl.program_id(0) * EACH + tl.arange(0, EACH)
    line = weight + expert * (2 * N * K) + tl.minimum(n, N - 1)[:, None] * K
    gate, up = tl.zeros((EACH, AT), tl.float32), tl.zeros((EACH, AT), tl.float32)
    for start in tl.static_range(0, K, AT):
        k = start + tl.arange(0, AT)[None, :]
        value = tl.load(x + assignment // TOP_K * K + k, mask=k < K, other=0.0).to(tl.float32)
        gate += value * tl.load(line + k, mask=k < K, other=0.0).to(tl.float32)
        up += value * tl.load(line + N * K + k, mask=k < K, other=0.0).to(tl.float32)
    gates, ups = tl.sum(gate, 1), tl.sum(up, 1)
    if BIASED:
        of_expert = bias + expert * (2 * N) + tl.minimum(n, N - 1)
        gates += tl.load(of_expert).to(tl.float32)
        ups += tl.load(of_expert + N).to(tl.float32)
    result = gated(gates, ups, KIND)
    tl.store(hidden + assignment * N + n, result.to(hidden.dtype.element_ty), mask=n < N)


@kernel()
def _down_kernel(
    hidden,
    weight,
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
):
    token = tl.program_id(1)
    n = tl.program_id(0) * EACH + tl.arange(0, EACH)
    line = weight + tl.minimum(n, N - 1)[:, None] * K
    total = tl.zeros((EACH, AT), tl.float32)
    added = tl.zeros((EACH,), tl.float32)
    for i in tl.static_range(TOP_K):
        assignment = token * TOP_K + i
        expert, share = tl.load(numbers + assignment).to(tl.int64), tl.load(weights + assignment)
        here = (expert >= 0) & (expert < EXPERTS)  # else `hidden` was never written
        expert = tl.where(here, expert, 0)
        of_expert = line + expert * (N * K)
        sums = tl.zeros((EACH, AT), tl.float32)
        for start in tl.static_range(0, K, AT):
            k = start + tl.arange(0, AT)[None, :]
            value = tl.load(hidden + assignment * K + k, mask=k < K, other=0.0).to(tl.float32)
            sums += tl.where(here, value, 0.0) * tl.load(of_expert + k, mask=k < K, other=0.0).to(tl.float32)
        total += sums * share
        if BIASED:
            own = tl.load(bias + expert * N + tl.minimum(n, N - 1)).to(tl.float32)
            added += tl.where(here, share, 0.0) * own
    tl.store(out + token * N + n, (tl.sum(total, 1) + added).to(out.dtype.element_ty), mask=n < N)
