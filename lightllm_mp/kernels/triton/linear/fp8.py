"""Products of 8-bit floats by 8-bit floats, with a scale for each row or output and group of inputs (DeepSeek-V3,
arXiv 2412.19437), on compute capability 9.0.

The kernels round activations to fp8 by groups of the weight's inputs. The matrix unit sums the product of one group.
The kernel multiplies it by both scales and adds it to float32 sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.reference.quantised import LARGEST
from lightllm_mp.kernels.triton.launch import kernel
from lightllm_mp.kernels.triton.linear.few_rows import Streamed, streamed
from lightllm_mp.kernels.triton.linear.tuned_linear import (
    MOST_STREAMED_IN_8_BITS,
    Fp8Blocks,
    fp8_blocks,
    quantised_blocks,
)

GROUP = 128
"""Inputs that share a scale."""
ROWS_EACH = 8
"""Rows per program that rounds one group."""


def takes_blocks(weight: Streamed) -> bool:
    """Whether `in_blocks` can multiply by a weight of 8-bit floats."""
    return weight.scale_group == GROUP and weight.inputs % GROUP == 0 and weight.outputs % 16 == 0


def in_blocks(x: Tensor, weight: Streamed) -> Tensor:
    """x [rows, k], rounded to 8-bit floats, @ weight.T + bias in the type of x."""
    values, scales = quantised_rows(x)
    if x.shape[0] <= MOST_STREAMED_IN_8_BITS:
        return streamed(values, weight, x.dtype, quantised_blocks("fp8 x fp8", GROUP, x.shape[0]), scales)
    return scaled_product(values, scales, weight, x.dtype, fp8_blocks(x.shape[0]))


def quantised_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [rows, k] of any floating type -> (float8_e4m3fn [rows, k], float32 scales [k / GROUP, rows])."""
    rows, k = x.shape
    values = torch.empty((rows, k), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((k // GROUP, rows), dtype=torch.float32, device=x.device)
    if rows:
        _quantise_kernel.launch(
            (triton.cdiv(rows, ROWS_EACH), k // GROUP, 1),
            _quantise_kernel.arguments(
                x=x,
                values=values,
                scales=scales,
                rows=rows,
                inputs=k,
                ROWS=ROWS_EACH,
                GROUP=GROUP,
                LARGEST=LARGEST["fp8"],
            ),
            warps=2,
        )
    return values, scales


def scaled_product(x: Tensor, x_scales: Tensor, weight: Streamed, dtype: torch.dtype, by: Fp8Blocks) -> Tensor:
    """x float8 [rows, k] with scales [k / GROUP, rows] @ weight.T + bias, [rows, n] of `dtype`."""
    rows, n, k = x.shape[0], weight.outputs, weight.inputs
    out = torch.empty((rows, n), dtype=dtype, device=x.device)
    tiles = triton.cdiv(rows, by.rows) * triton.cdiv(n, by.outputs)
    assert weight.scales is not None
    _scaled_product_kernel.launch(
        (tiles, 1, 1),
        _scaled_product_kernel.arguments(
            x=x,
            x_scales=x_scales,
            weight=weight.weight,
            scales=weight.scales,
            bias=out if weight.bias is None else weight.bias,
            out=out,
            rows=rows,
            outputs=n,
            inputs=k,
            SHARED=weight.scale_outputs % by.outputs == 0,
            BIASED=weight.bias is not None,
            GROUP=GROUP,
            ROWS=by.rows,
            OUTPUTS=by.outputs,
            TOGETHER=by.together,
        ),
        warps=by.warps,
        stages=by.stages,
    )
    return out


@kernel(numbers=["rows", "inputs"], specialised=["inputs"])
def _quantise_kernel(
    x,
    values,
    scales,
    rows,
    inputs,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    LARGEST: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    at = row.to(tl.int64)[:, None] * inputs + group * GROUP + tl.arange(0, GROUP)[None, :]
    there = row < rows
    wide = tl.load(x + at, mask=there[:, None], other=0.0).to(tl.float32)
    rounded, scale = rounded_to_fp8(wide, LARGEST)
    tl.store(scales + group * rows + row, scale, mask=there)
    tl.store(values + at, rounded.to(values.dtype.element_ty), mask=there[:, None])


@triton.jit
def rounded_to_fp8(wide, LARGEST: tl.constexpr):
    """Divides a float32 block [rows, inputs of a group] by the scale of each row. Returns the quotients, not rounded
    yet, and the scales."""
    largest = tl.max(tl.abs(wide), 1)
    scale = tl.where(largest > 0, largest / LARGEST, 1.0)
    # Rounding may bring the quotient above the largest value.
    return tl.minimum(tl.maximum(wide / scale[:, None], -LARGEST), LARGEST), scale


@kernel(numbers=["rows", "outputs", "inputs"], specialised=["inputs"])
def _scaled_product_kernel(
    x,
    x_scales,
    weight,
    scales,
    bias,
    out,
    rows,
    outputs,
    inputs,
    SHARED: tl.constexpr,
    BIASED: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """`SHARED`: all outputs of a tile have the same scales. Neighbouring programs take TOGETHER tiles of rows for the
    same outputs, so that both operands are in the cache."""
    program = tl.program_id(0)
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(outputs, OUTPUTS)
    first = program // (TOGETHER * across) * TOGETHER
    high = tl.minimum(down - first, TOGETHER)
    inner = program % (TOGETHER * across)
    m = (first + inner % high) * ROWS + tl.arange(0, ROWS)
    start = inner // high * OUTPUTS
    n = start + tl.arange(0, OUTPUTS)
    i = tl.arange(0, GROUP)
    m_at, n_at = tl.minimum(m, rows - 1), tl.minimum(n, outputs - 1)
    x_at = x + m_at.to(tl.int64)[:, None] * inputs + i[None, :]
    w_at = weight + n_at.to(tl.int64)[:, None] * inputs + i[None, :]
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for group in range(inputs // GROUP):
        left, right = tl.load(x_at + group * GROUP), tl.load(w_at + group * GROUP)
        x_scale = tl.load(x_scales + group * rows + m_at)
        product = tl.dot(left, tl.trans(right))
        if SHARED:
            sums += product * (x_scale * tl.load(scales + group * outputs + start))[:, None]
        else:
            sums += product * x_scale[:, None] * tl.load(scales + group * outputs + n_at)[None, :]
    if BIASED:
        sums += tl.load(bias + n_at).to(tl.float32)[None, :]
    inside = (m < rows)[:, None] & (n < outputs)[None, :]
    tl.store(out + m.to(tl.int64)[:, None] * outputs + n[None, :], sums.to(out.dtype.element_ty), mask=inside)
