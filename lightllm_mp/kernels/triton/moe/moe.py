"""Mixture of experts on CUDA. It never waits for the device and uses no atomics, so results are repeatable."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.reference.moe import NO_BIASES
from lightllm_mp.kernels.table import ExpertBiases, ExpertWeights
from lightllm_mp.kernels.triton.block_sizes import next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel
from lightllm_mp.kernels.triton.linear.fp8 import GROUP, quantised_rows
from lightllm_mp.kernels.triton.linear.quantised import multiplies_fp8
from lightllm_mp.kernels.triton.linear.tuned_linear import MOST_ROWS_BEFORE_8_BITS
from lightllm_mp.kernels.triton.moe import grouped_gemm, tuned_moe
from lightllm_mp.kernels.triton.moe.expert_matrix import ExpertMatrix, expert_matrix
from lightllm_mp.kernels.triton.moe.expert_tiles import expert_tiles
from lightllm_mp.kernels.triton.moe.few_tokens import experts_alone
from lightllm_mp.kernels.triton.moe.mxfp4 import MXFP4, Mxfp4Experts
from lightllm_mp.kernels.triton.moe.mxfp4_few import packed_experts_alone

SUM_BLOCK = 1024


BLOCK_TYPES = frozenset((MXFP4.value,))
"""ggml's numbers of the types that experts keep."""


class StackedExperts(NamedTuple):
    """Both weights of all experts."""

    gate_up: ExpertMatrix | Mxfp4Experts
    """[experts, 2 * n, k]"""
    down: ExpertMatrix | Mxfp4Experts
    """[experts, k, n]"""
    biases: ExpertBiases


def prepare_experts(gate_up: ExpertWeights, down: ExpertWeights, biases: ExpertBiases = NO_BIASES) -> StackedExperts:
    kept = ExpertBiases(*(None if bias is None else bias.contiguous() for bias in biases))
    return StackedExperts(expert_matrix(gate_up), expert_matrix(down), kept)


def experts(x: Tensor, prepared: StackedExperts, weights: Tensor, numbers: Tensor, activation: str) -> Tensor:
    tokens, top_k = numbers.shape
    if tokens == 0:
        return torch.empty_like(x)
    gate_up, down, biases = prepared
    packed = isinstance(gate_up, Mxfp4Experts) or isinstance(down, Mxfp4Experts)
    if isinstance(gate_up, Mxfp4Experts) and isinstance(down, Mxfp4Experts):
        if tokens <= tuned_moe.PACKED_ALONE_TOKENS and x.dtype != torch.float32:
            return packed_experts_alone(x, gate_up, down, biases, weights, numbers, activation)
    elif isinstance(gate_up, ExpertMatrix) and isinstance(down, ExpertMatrix):
        if tokens <= tuned_moe.ALONE_TOKENS and x.dtype != torch.float32:
            return experts_alone(x, gate_up, down, biases, weights, numbers, activation)
        if in_8_bits(x, tokens, gate_up, down):
            return experts_in_8_bits(x, gate_up, down, biases, weights, numbers, activation)
    shared = _shared_memory(x.device)
    blocks = tuned_moe.expert_blocks(tokens * top_k, down.experts, x.dtype, shared, packed=packed)
    tiles, together = expert_tiles(numbers, down.experts, blocks.rows), blocks.together
    hidden = x.new_empty((tokens * top_k, down.inputs))
    grouped_gemm.gate_up(x, gate_up, biases.gate_up, tiles, hidden, blocks.rows, blocks.gate_up, together, activation)
    each = x.new_empty((tokens * top_k, x.shape[1]))
    grouped_gemm.down(hidden, down, biases.down, tiles, each, blocks.rows, blocks.down, together)
    return weighted_sum(each, weights, numbers, down.experts)


def in_8_bits(x: Tensor, tokens: int, gate_up: ExpertMatrix, down: ExpertMatrix) -> bool:
    """Whether activations are rounded to 8-bit floats, by the rule of `linear/quantised.py`."""
    enough = tokens > MOST_ROWS_BEFORE_8_BITS and x.dtype == torch.bfloat16
    return enough and multiplies_fp8(x.device) and gate_up.in_fp8_blocks and down.in_fp8_blocks


def experts_in_8_bits(
    x: Tensor,
    gate_up: ExpertMatrix,
    down: ExpertMatrix,
    biases: ExpertBiases,
    weights: Tensor,
    numbers: Tensor,
    activation: str,
) -> Tensor:
    """As `experts`, but rounds activations to 8-bit floats by groups before both products."""
    tokens, top_k = numbers.shape
    assignments = tokens * top_k
    blocks = tuned_moe.fp8_blocks(assignments, down.experts)
    tiles, together = expert_tiles(numbers, down.experts, blocks.rows), blocks.together
    values, scales = quantised_rows(x)
    hidden = values.new_empty((assignments, down.inputs))
    hidden_scales = scales.new_empty((down.inputs // GROUP, assignments))
    grouped_gemm.gate_up(
        values, gate_up, biases.gate_up, tiles, hidden, blocks.rows, blocks.gate_up, together, activation,
        scales, hidden_scales,
    )  # fmt: skip
    each = x.new_empty((assignments, x.shape[1]))
    grouped_gemm.down(hidden, down, biases.down, tiles, each, blocks.rows, blocks.down, together, hidden_scales)
    return weighted_sum(each, weights, numbers, down.experts)


@lru_cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may use; the interpreter has no limit."""
    if device.type != "cuda":
        return tuned_moe.LARGE_SHARED
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def weighted_sum(each: Tensor, weights: Tensor, numbers: Tensor, experts: int) -> Tensor:
    """each [tokens * top_k, width], weights and numbers [tokens, top_k] -> [tokens, width]. Sums in the order of
    `each`, without results of experts of other ranks."""
    tokens, top_k = weights.shape
    width = each.shape[1]
    out = each.new_empty((tokens, width))
    block = min(SUM_BLOCK, next_power_of_2(width))
    grid = (tokens, triton.cdiv(width, block), 1)
    _sum_kernel.launch(
        grid,
        _sum_kernel.arguments(
            each=each,
            weights=weights,
            numbers=numbers,
            out=out,
            TOP_K=top_k,
            EXPERTS=experts,
            WIDTH=width,
            BLOCK=block,
        ),
    )
    return out


@kernel()
def _sum_kernel(
    each,
    weights,
    numbers,
    out,
    TOP_K: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < WIDTH
    sums = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(TOP_K):
        expert = tl.load(numbers + token * TOP_K + i)
        line = each + (token * TOP_K + i) * WIDTH
        part = tl.load(weights + token * TOP_K + i) * tl.load(line + at, mask=inside, other=0.0).to(tl.float32)
        sums += tl.where((expert >= 0) & (expert < EXPERTS), part, 0.0)  # unwritten for experts of other ranks
    tl.store(out + token * WIDTH + at, sums.to(out.dtype.element_ty), mask=inside)
