"""Experts in MXFP4 for very few tokens. Each token is multiplied alone, because the read of the codes limits the speed.

A code's bits are a float32 that is 2^126 times smaller, and a block's scale has this factor. The kernels sum the
products of a block before they scale them. Activations carry a part of the factor, so that products are not too small
for a float32.
"""

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
from lightllm_mp.kernels.triton.moe.mxfp4 import BLOCK, STEP, Mxfp4Experts
from lightllm_mp.kernels.triton.moe.tuned_moe import AloneBlocks

LIFT = tl.constexpr(2.0**60)
"""The part of the factor that activations carry."""


def packed_experts_alone(
    x: Tensor,
    gate_up: Mxfp4Experts,
    down: Mxfp4Experts,
    biases: ExpertBiases,
    weights: Tensor,
    numbers: Tensor,
    activation: str,
) -> Tensor:
    tokens, k = x.shape
    n, top_k = down.inputs, numbers.shape[1]
    hidden, out = x.new_empty((tokens * top_k, n)), torch.empty_like(x)
    each, at, warps = _fitting(tuned_moe.PACKED_ALONE_GATE_UP, k)
    _packed_gate_up_kernel.launch(
        (triton.cdiv(n, each), tokens * top_k, 1),
        _packed_gate_up_kernel.arguments(
            x=x,
            codes=gate_up.codes,
            scales=gate_up.scales,
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
            BYTES=at,
        ),
        warps=warps,
    )
    each, at, warps = _fitting(tuned_moe.PACKED_ALONE_DOWN, n)
    _packed_down_kernel.launch(
        (triton.cdiv(k, each), tokens, 1),
        _packed_down_kernel.arguments(
            hidden=hidden,
            codes=down.codes,
            scales=down.scales,
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
            BYTES=at,
        ),
        warps=warps,
    )
    return out


def _fitting(blocks: AloneBlocks, inputs: int) -> AloneBlocks:
    """Blocks that hold at most `inputs` bytes of codes, in whole blocks of the format."""
    most = max(BLOCK, next_power_of_2(triton.cdiv(inputs, STEP) * BLOCK))
    return blocks._replace(inputs=min(blocks.inputs // 2, most))


@kernel()
def _packed_gate_up_kernel(
    x,
    codes,
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
    BYTES: tl.constexpr,
):
    assignment = tl.program_id(1)
    expert = tl.load(numbers + assignment).to(tl.int64)
    if (expert < 0) | (expert >= EXPERTS):
        return
    n = tl.program_id(0) * EACH + tl.arange(0, EACH)
    at = tl.minimum(n, N - 1)
    STEPS: tl.constexpr = (K + 63) // 64
    row = x + assignment // TOP_K * K
    of_expert = expert * (2 * N)
    codes += (of_expert + at)[:, None] * (STEPS * 32)
    scales += of_expert * STEPS + at[:, None]
    gate, up = tl.zeros((EACH, BYTES // 32), tl.float32), tl.zeros((EACH, BYTES // 32), tl.float32)
    for start in tl.static_range(0, STEPS * 32, BYTES):
        left, right = _activations(row, start, K, BYTES)
        gate += _block_sums(left, right, codes, scales, start, 2 * N, STEPS, BYTES)
        up += _block_sums(left, right, codes + N * STEPS * 32, scales + N, start, 2 * N, STEPS, BYTES)
    gates, ups = tl.sum(gate, 1), tl.sum(up, 1)
    if BIASED:
        bias += of_expert + at
        gates += tl.load(bias).to(tl.float32)
        ups += tl.load(bias + N).to(tl.float32)
    result = gated(gates, ups, KIND)
    tl.store(hidden + assignment * N + n, result.to(hidden.dtype.element_ty), mask=n < N)


@kernel()
def _packed_down_kernel(
    hidden,
    codes,
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
    BYTES: tl.constexpr,
):
    token = tl.program_id(1)
    n = tl.program_id(0) * EACH + tl.arange(0, EACH)
    at = tl.minimum(n, N - 1)
    STEPS: tl.constexpr = (K + 63) // 64
    total = tl.zeros((EACH, BYTES // 32), tl.float32)
    added = tl.zeros((EACH,), tl.float32)
    for i in tl.static_range(TOP_K):
        assignment = token * TOP_K + i
        expert = tl.load(numbers + assignment).to(tl.int64)
        here = (expert >= 0) & (expert < EXPERTS)  # else no program has written `hidden`
        expert = tl.where(here, expert, 0)
        code_at = codes + (expert * N + at)[:, None] * (STEPS * 32)
        scale_at = scales + expert * (N * STEPS) + at[:, None]
        sums = tl.zeros((EACH, BYTES // 32), tl.float32)
        for start in tl.static_range(0, STEPS * 32, BYTES):
            left, right = _activations(hidden + assignment * K, start, K, BYTES)
            left, right = tl.where(here, left, 0.0), tl.where(here, right, 0.0)
            sums += _block_sums(left, right, code_at, scale_at, start, N, STEPS, BYTES)
        share = tl.load(weights + assignment)
        total += sums * share
        if BIASED:
            added += tl.where(here, share, 0.0) * tl.load(bias + expert * N + at).to(tl.float32)
    tl.store(out + token * N + n, (tl.sum(total, 1) + added).to(out.dtype.element_ty), mask=n < N)


@triton.jit
def _activations(row, start, K: tl.constexpr, BYTES: tl.constexpr):
    """Activations for the low and for the high codes of BYTES bytes of a row of weights, times LIFT."""
    byte = start + tl.arange(0, BYTES)
    k = byte // 32 * 64 + byte % 32
    left = tl.load(row + k, mask=k < K, other=0.0).to(tl.float32)
    right = tl.load(row + k + 32, mask=k + 32 < K, other=0.0).to(tl.float32)
    return left * LIFT, right * LIFT


@triton.jit
def _block_sums(left, right, codes, scales, start, outputs, STEPS: tl.constexpr, BYTES: tl.constexpr):
    """Products [outputs, bytes] of both halves of the bytes, summed by steps and scaled."""
    byte = start + tl.arange(0, BYTES)[None, :]
    code = tl.load(codes + byte, mask=byte < STEPS * 32, other=0).to(tl.int32)
    low = ((code & 7) << 22 | (code & 8) << 28).to(tl.float32, bitcast=True) * left[None, :]
    high = ((code & 0x70) << 18 | (code & 0x80) << 24).to(tl.float32, bitcast=True) * right[None, :]
    step = start // 32 + tl.arange(0, BYTES // 32)[None, :]
    scale = tl.load(scales + step * outputs, mask=step < STEPS, other=0)
    even = (scale << 16).to(tl.float32, bitcast=True) / LIFT
    odd = (scale & -65536).to(tl.float32, bitcast=True) / LIFT
    shape: tl.constexpr = (code.shape[0], BYTES // 32, 32)
    return tl.sum(tl.reshape(low, shape), 2) * even + tl.sum(tl.reshape(high, shape), 2) * odd
