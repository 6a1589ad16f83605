"""Quantised weights on a GPU: few rows read them as stored; many rows expand them or multiply in 8 bits (fp8)."""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.quantised import BlockWeight, GroupedWeight, QuantisedWeight
from lightllm_mp.kernels.reference.quantised import LARGEST, expanded
from lightllm_mp.kernels.triton.block_sizes import converts_fp8, next_power_of_2
from lightllm_mp.kernels.triton.launch import ALIGNED, kernel
from lightllm_mp.kernels.triton.linear.cublas import matmul
from lightllm_mp.kernels.triton.linear.few_rows import LEAST_INPUTS, Streamed, counters, run_of, streamed, streams
from lightllm_mp.kernels.triton.linear.fp8 import GROUP, in_blocks, takes_blocks
from lightllm_mp.kernels.triton.linear.tuned_linear import MOST_ROWS, MOST_ROWS_BEFORE_8_BITS, quantised_blocks

EXPANDED_OUTPUTS, EXPANDED_INPUTS = 32, 128
"""The part of the weight that a program expands."""
ROW_WARPS = 8


def prepare_quantised(weight: QuantisedWeight, bias: Tensor | None, dtype: torch.dtype) -> Streamed:
    """The weight as the kernels read it. 4-bit weights with groups of unequal size, or not of a multiple of 32 inputs,
    become plain weights of `dtype`. So do 8-bit weights with groups that are not a multiple of 16 inputs, and 8-bit
    floats on GPUs that cannot read them."""
    assert not isinstance(weight, BlockWeight), "block_types names none"
    n = weight.scales.shape[0]
    arrived = counters(n, weight.scales.device)
    if not isinstance(weight, GroupedWeight):
        unread = weight.values.dtype == torch.float8_e4m3fn and not converts_fp8(weight.values.device)
        if unread or weight.group % LEAST_INPUTS:
            return Streamed(expanded(weight, dtype), bias, arrived)
        if not weight.group:
            return Streamed(weight.values.contiguous(), bias, arrived, weight.scales.view(-1))
        scales, shared = weight.scales.t().contiguous(), shared_outputs(weight.scales)
        return Streamed(
            weight.values.contiguous(), bias, arrived, scales, scale_group=weight.group, scale_outputs=shared
        )
    group = _group_size(weight)
    if group % (2 * LEAST_INPUTS):
        return Streamed(expanded(weight, dtype), bias, arrived)
    order = torch.argsort(weight.group_of, stable=True)
    in_order = bool((order[1:] > order[:-1]).all())
    codes = weight.codes if in_order else weight.codes[:, order]
    pairs = codes.view(n, -1, 2, run_of(group))
    packed = (pairs[:, :, 0] | pairs[:, :, 1] << 4).view(n, -1)
    scales, zeros = weight.scales.t().contiguous(), weight.zeros.t().contiguous()
    return Streamed(packed, bias, arrived, scales, zeros, group, order=None if in_order else order)


def _group_size(weight: GroupedWeight) -> int:
    """Inputs of each group; 1 if groups differ in size."""
    sizes = torch.bincount(weight.group_of.long(), minlength=weight.scales.shape[1]).tolist()
    return sizes[0] if len(set(sizes)) == 1 else 1


def shared_outputs(scales: Tensor) -> int:
    """The size of blocks of adjacent outputs, 128 or 1, in which all outputs have the same scales [..., n, groups]."""
    n = scales.shape[-2]
    if n % GROUP:
        return 1
    blocks = scales.unflatten(-2, (n // GROUP, GROUP))
    return GROUP if bool((blocks == blocks[..., :1, :]).all()) else 1


def product(x: Tensor, weight: Streamed, dtype: torch.dtype) -> Tensor:
    """x [rows, k] @ expanded weight.T + bias, [rows, n] of `dtype`."""
    if weight.order is not None:
        x = x.index_select(1, weight.order)
    form, rows = form_of(weight), x.shape[0]
    in_both = form == "fp8" and x.dtype == dtype == torch.bfloat16 and _multiplies_fp8(x.device, weight)
    if in_both and rows > MOST_ROWS_BEFORE_8_BITS:
        return in_blocks(x, weight) if weight.scale_group else in_8_bits(x, weight)
    if x.dtype != torch.float32 and rows <= MOST_ROWS[form]:
        common = math.gcd(weight.inputs, weight.scale_group)
        blocks = quantised_blocks(form, common, rows)
        if streams(weight, rows, blocks):
            return streamed(x, weight, dtype, blocks)
    return matmul(x, expand(weight, x.dtype), weight.bias, dtype)


def form_of(weight: Streamed) -> str:
    if weight.group:
        return "int4"
    return "int8" if weight.weight.dtype == torch.int8 else "fp8"


def expand(weight: Streamed, dtype: torch.dtype) -> Tensor:
    """The weight [n, k] in `dtype`, its inputs in stored order."""
    n, k = weight.outputs, weight.inputs
    out = torch.empty((n, k), dtype=dtype, device=weight.weight.device)
    inputs = 2 * weight.run if weight.group else EXPANDED_INPUTS
    zeros = out if weight.zeros is None else weight.zeros
    _expand_kernel.launch(
        (triton.cdiv(k, inputs), triton.cdiv(n, EXPANDED_OUTPUTS), 1),
        _expand_kernel.arguments(
            weight=weight.weight,
            scales=weight.scales,
            zeros=zeros,
            out=out,
            outputs=n,
            inputs=k,
            GROUP=weight.group,
            SCALE_GROUP=weight.scale_group,
            OUTPUTS=EXPANDED_OUTPUTS,
            INPUTS=inputs,
            EVEN=k % ALIGNED == 0,
        ),
    )
    return out


def in_8_bits(x: Tensor, weight: Streamed) -> Tensor:
    """The product in bfloat16 with both operands in fp8. The largest magnitude of each row of x gives its scale. Needs
    compute capability 9.0."""
    rows, k = x.shape
    values = torch.empty((rows, k), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    _rows_kernel.launch(
        (rows, 1, 1),
        _rows_kernel.arguments(
            x=x, values=values, scales=scales, inputs=k, INPUTS=next_power_of_2(k), LARGEST=LARGEST["fp8"]
        ),
        warps=ROW_WARPS,
    )
    assert weight.scales is not None
    result = torch._scaled_mm(
        values,
        weight.weight.t(),
        scale_a=scales,
        scale_b=weight.scales[None, :],
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return result if weight.bias is None else result.add_(weight.bias)


def _multiplies_fp8(device: torch.device, weight: Streamed) -> bool:
    if weight.scale_group:
        return multiplies_fp8(device) and takes_blocks(weight)
    return multiplies_fp8(device) and weight.outputs % 16 == 0 and weight.inputs % 16 == 0


@cache
def multiplies_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


@kernel(numbers=["outputs", "inputs"], specialised=["inputs"])
def _expand_kernel(
    weight,
    scales,
    zeros,
    out,
    outputs,
    inputs,
    GROUP: tl.constexpr,
    SCALE_GROUP: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """The kernel ignores `EVEN`. It separates kernels that are compiled for multiples of 16 inputs from the others."""
    block = tl.program_id(0)
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    line, there = n.to(tl.int64)[:, None], n < outputs
    if GROUP:
        i = block * (INPUTS // 2) + tl.arange(0, INPUTS // 2)[None, :]
        at = block * INPUTS + tl.arange(0, INPUTS // 2)[None, :]
        codes = tl.load(weight + line * (inputs // 2) + i, mask=there[:, None], other=0)
        place = block * INPUTS // GROUP * outputs + n
        scale = tl.load(scales + place, mask=there, other=0.0).to(tl.float32)[:, None]
        zero = tl.load(zeros + place, mask=there, other=0).to(tl.float32)[:, None]
        low, high = ((codes & 15).to(tl.float32) - zero) * scale, ((codes >> 4).to(tl.float32) - zero) * scale
        tl.store(out + line * inputs + at, low.to(out.dtype.element_ty), mask=there[:, None])
        tl.store(out + line * inputs + at + INPUTS // 2, high.to(out.dtype.element_ty), mask=there[:, None])
    else:
        at = block * INPUTS + tl.arange(0, INPUTS)[None, :]
        inside = there[:, None] & (at < inputs)
        values = tl.load(weight + line * inputs + at, mask=inside, other=0.0).to(tl.float32)
        if SCALE_GROUP:
            scale = tl.load(scales + at // SCALE_GROUP * outputs + n[:, None], mask=inside, other=0.0)
        else:
            scale = tl.load(scales + n, mask=there, other=0.0)[:, None]
        tl.store(out + line * inputs + at, (values * scale).to(out.dtype.element_ty), mask=inside)


@kernel(numbers=["inputs"], specialised=["inputs"])
def _rows_kernel(x, values, scales, inputs, INPUTS: tl.constexpr, LARGEST: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, INPUTS)
    line = tl.load(x + row.to(tl.int64) * inputs + i, mask=i < inputs, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(line), 0)
    scale = tl.where(largest > 0, largest / LARGEST, 1.0)
    tl.store(scales + row, scale)
    # Rounding may bring the quotient above the largest value.
    line = tl.minimum(tl.maximum(line / scale, -LARGEST), LARGEST)
    tl.store(values + row.to(tl.int64) * inputs + i, line.to(values.dtype.element_ty), mask=i < inputs)
