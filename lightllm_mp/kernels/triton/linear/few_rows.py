"""Projections of few rows (stream-K), limited by the read of the weight: plain, 8-bit and 4-bit weights.

The kernel cuts the weight into tiles of some outputs and steps of some inputs. All steps of all tiles form one queue,
which the programs cut into equal shares: every multiprocessor reads the same amount, and loads run ahead across the
ends of tiles. If a tile is cut, each part's sums go to memory. The last program to arrive adds them in their order, so
the result does not depend on which program is last. Afterwards the arrival counters are zero again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.triton.block_sizes import dot_block, processors
from lightllm_mp.kernels.triton.launch import kernel, wait_for_inputs
from lightllm_mp.kernels.triton.linear.tuned_linear import ROWS_AT_A_TIME, LinearBlocks

LEAST_OUTPUTS = 16
"""The fewest outputs of a tile. The number of counters suffices for tiles of this size."""
LEAST_INPUTS = 16
"""The fewest inputs of a matrix instruction."""
ROW_TILES = 2
"""The most tiles of ROWS_AT_A_TIME rows in one product."""


class Streamed(NamedTuple):
    """A weight as the kernel reads it: [n, k] of 16 or 8 bits, or [n, k / 2] bytes with two 4-bit codes each."""

    weight: Tensor
    bias: Tensor | None
    arrived: Tensor
    """int32, zero between products: finished parts of each cut tile. Each weight has its own counters, so that two
    streams may multiply by different weights at the same time."""
    scales: Tensor | None = None
    """8 bits: float32 [n], or [groups, n] with `scale_group`; 4 bits: any floating type [k / group, n]."""
    zeros: Tensor | None = None
    """4 bits: uint8 [k / group, n]."""
    group: int = 0
    """4 bits: inputs that share a scale, else 0. Of each `2 * run` codes, byte j holds codes j and j + run."""
    scale_group: int = 0
    """8 bits: inputs that share a scale; 0: all."""
    scale_outputs: int = 1
    """8 bits with `scale_group`: outputs that share their scales, a power of two. Tiles of outputs begin at its
    multiples."""
    order: Tensor | None = None
    """4 bits: the order in which the weight stores its inputs; None: unchanged."""

    @property
    def run(self) -> int:
        return run_of(self.group)

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]

    @property
    def inputs(self) -> int:
        return self.weight.shape[1] * (2 if self.group else 1)


def run_of(group: int) -> int:
    """The distance of the two inputs of a byte: the largest power of two up to 64 that divides half a group."""
    return min(64, (group // 2) & -(group // 2))


def counters(outputs: int, device: torch.device) -> Tensor:
    return torch.zeros(ROW_TILES * triton.cdiv(outputs, LEAST_OUTPUTS), dtype=torch.int32, device=device)


def streams(weight: Streamed, rows: int, blocks: LinearBlocks) -> bool:
    """Whether `streamed` can compute the product."""
    step = 2 * weight.run if weight.group else blocks.inputs
    in_groups = weight.inputs % step == 0 and weight.scale_group % step == 0
    return rows <= ROW_TILES * ROWS_AT_A_TIME and step >= LEAST_INPUTS and in_groups


def streamed(
    x: Tensor, weight: Streamed, dtype: torch.dtype, blocks: LinearBlocks, x_scales: Tensor | None = None
) -> Tensor:
    """x [rows, k] @ weight.T + bias, [rows, n] of `dtype`; sums are float32. With `x_scales`, float32 [groups, rows], x
    has 8-bit floats like the weight, with scales for the same groups of inputs."""
    rows, n, k = x.shape[0], weight.outputs, weight.inputs
    inputs = 2 * weight.run if weight.group else blocks.inputs
    many = min(dot_block(rows), ROWS_AT_A_TIME)
    row_tiles = triton.cdiv(rows, many)
    steps = triton.cdiv(n, blocks.outputs) * (k // inputs)
    programs = min(max(1, processors(x.device) * blocks.programs // row_tiles), steps)
    out = torch.empty((rows, n), dtype=dtype, device=x.device)
    partial = torch.empty((row_tiles, programs, 2, many, blocks.outputs), dtype=torch.float32, device=x.device)
    _stream_kernel.launch(
        (row_tiles, programs, 1),
        _stream_kernel.arguments(
            x=x,
            weight=weight.weight,
            x_scales=out if x_scales is None else x_scales,
            scales=out if weight.scales is None else weight.scales,
            zeros=out if weight.zeros is None else weight.zeros,
            bias=out if weight.bias is None else weight.bias,
            out=out,
            partial=partial,
            arrived=weight.arrived,
            rows=rows,
            outputs=n,
            inputs=k,
            SCALED=weight.scales is not None and not weight.group and not weight.scale_group,
            GROUP=weight.group,
            SCALE_GROUP=weight.scale_group,
            SHARED=weight.scale_outputs % blocks.outputs == 0,
            IN_8_BITS=x_scales is not None,
            BIASED=weight.bias is not None,
            ROWS=many,
            OUTPUTS=blocks.outputs,
            INPUTS=inputs,
            SWAPPED=blocks.swapped,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        ),
        warps=blocks.warps,
        stages=blocks.stages,
    )
    return out


@kernel(numbers=["rows", "outputs", "inputs"], specialised=["inputs"], waits=True)
def _stream_kernel(
    x,
    weight,
    x_scales,
    scales,
    zeros,
    bias,
    out,
    partial,
    arrived,
    rows,
    outputs,
    inputs,
    SCALED: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE_GROUP: tl.constexpr,
    SHARED: tl.constexpr,
    IN_8_BITS: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    SWAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    row_tile, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    blocks = inputs // INPUTS
    tiles = tl.cdiv(outputs, OUTPUTS)
    steps = tiles * blocks
    begin, end = steps * part // parts, steps * (part + 1) // parts
    partial += row_tile * parts * (2 * ROWS * OUTPUTS)
    arrived += row_tile * tiles

    m = row_tile * ROWS + tl.arange(0, ROWS)
    o = tl.arange(0, OUTPUTS)
    place = tl.arange(0, ROWS)[:, None] * OUTPUTS + o[None, :]
    there = m[:, None] < rows
    tile, block = begin // blocks, begin % blocks
    whole = (block == 0).to(tl.int32)
    if EARLY:
        width = inputs // 2 if GROUP else inputs
        prefetch(weight, tile * OUTPUTS + o, block * INPUTS * width // inputs, outputs, width)
    wait_for_inputs(EARLY)
    if GROUP:
        scale, zero = _group(scales, zeros, tile * OUTPUTS + o, block * INPUTS // GROUP, outputs)
    sums = tl.zeros([ROWS, OUTPUTS], tl.float32)
    if SWAPPED:
        sums = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for step in range(begin, end):
        line = tl.minimum(o, outputs - 1 - tile * OUTPUTS)[:, None]
        if GROUP:
            i = tl.arange(0, INPUTS // 2)[None, :]
            base = weight + tile.to(tl.int64) * OUTPUTS * (inputs // 2) + block * (INPUTS // 2)
            codes = tl.load(base + line * (inputs // 2) + i)
            left = tl.load(x + m[:, None] * inputs + block * INPUTS + i, mask=there, other=0.0)
            right = tl.load(x + m[:, None] * inputs + block * INPUTS + INPUTS // 2 + i, mask=there, other=0.0)
            middle = _number(zero, x.dtype.element_ty)[:, None]
            low = _number(codes & 15, x.dtype.element_ty) - middle
            high = _number(codes >> 4, x.dtype.element_ty) - middle
            if SWAPPED:
                product = tl.dot(low, tl.trans(left), input_precision=PRECISION)
                sums += tl.dot(high, tl.trans(right), product, input_precision=PRECISION) * scale[:, None]
            else:
                product = tl.dot(left, tl.trans(low), input_precision=PRECISION)
                sums += tl.dot(right, tl.trans(high), product, input_precision=PRECISION) * scale[None, :]
        else:
            i = tl.arange(0, INPUTS)[None, :]
            base = weight + tile.to(tl.int64) * OUTPUTS * inputs + block * INPUTS
            w = tl.load(base + line * inputs + i).to(x.dtype.element_ty)
            left = tl.load(x + m[:, None] * inputs + block * INPUTS + i, mask=there, other=0.0)
            if SCALE_GROUP:
                if SWAPPED:
                    product = tl.dot(w, tl.trans(left), input_precision=PRECISION)
                else:
                    product = tl.dot(left, tl.trans(w), input_precision=PRECISION)
                at = block * INPUTS // SCALE_GROUP
                by = _factor(scales + at * outputs, tile * OUTPUTS + o, outputs, SHARED, SWAPPED)
                if IN_8_BITS:
                    x_scale = tl.load(x_scales + at * rows + m, mask=m < rows, other=0.0)
                    if SHARED:
                        by = x_scale * by
                        product *= by[None, :] if SWAPPED else by[:, None]
                    else:
                        product *= by * (x_scale[None, :] if SWAPPED else x_scale[:, None])
                else:
                    product *= by
                sums += product
            elif SWAPPED:
                sums = tl.dot(w, tl.trans(left), sums, input_precision=PRECISION)
            else:
                sums = tl.dot(left, tl.trans(w), sums, input_precision=PRECISION)
        done = block == blocks - 1
        if done | (step == end - 1):
            result = sums
            if SWAPPED:
                result = tl.trans(sums)
            if done & (whole == 1):
                _finish(result, scales, bias, out, m, tile * OUTPUTS + o, rows, outputs, SCALED, BIASED)
            else:
                tl.store(partial + (part * 2 + whole) * (ROWS * OUTPUTS) + place, result)
            sums = tl.zeros_like(sums)
        tile += done.to(tl.int32)
        block = tl.where(done, 0, block + 1)
        whole = tl.where(done, 1, whole)
        if GROUP:
            scale, zero = _group(scales, zeros, tile * OUTPUTS + o, block * INPUTS // GROUP, outputs)

    first, last = begin // blocks, (end - 1) // blocks
    tl.debug_barrier()  # all threads store before one thread counts
    for cut in range(first, last + 1, tl.maximum(last - first, 1)):
        owner = ((cut * blocks + 1) * parts - 1) // steps
        others = ((cut * blocks + blocks) * parts - 1) // steps - owner
        if others > 0:  # noqa: SIM102 - `and` would not keep the other from being evaluated
            if tl.atomic_add(arrived + cut, 1, sem="acq_rel") == others:
                total = tl.zeros([ROWS, OUTPUTS], tl.float32)
                for p in range(owner, owner + others + 1):
                    slot = p * 2 + (cut * blocks >= steps * p // parts).to(tl.int32)
                    # bypass the L1 cache: other multiprocessors wrote them
                    total += tl.load(partial + slot * (ROWS * OUTPUTS) + place, cache_modifier=".cg")
                _finish(total, scales, bias, out, m, cut * OUTPUTS + o, rows, outputs, SCALED, BIASED)
                tl.store(arrived + cut, 0)


@triton.jit
def prefetch(weight, n, begin, outputs, width):
    """Prefetches the start of the weight while the previous kernel ends; no kernel writes the weight."""
    i = begin + tl.arange(0, 8) * (128 // (weight.dtype.element_ty.primitive_bitwidth // 8))
    line = tl.minimum(n, outputs - 1).to(tl.int64)[:, None] * width
    at = (weight + line + tl.minimum(i, width - 1)[None, :]).to(tl.int64)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _group(scales, zeros, n, group, outputs):
    """Scales (float32) and zero points of the outputs `n` in one group of inputs."""
    place = group * outputs + n
    scale = tl.load(scales + place, mask=n < outputs, other=0.0).to(tl.float32)
    return scale, tl.load(zeros + place, mask=n < outputs, other=0)


@triton.jit
def _factor(scales, n, outputs, SHARED: tl.constexpr, SWAPPED: tl.constexpr):
    """The factor on a product: scales of the outputs `n` in one group of inputs, or one number if all share it."""
    if SHARED:
        factor = tl.load(scales + tl.min(n, 0))
    elif SWAPPED:
        factor = tl.load(scales + n, mask=n < outputs, other=0.0)[:, None]
    else:
        factor = tl.load(scales + n, mask=n < outputs, other=0.0)[None, :]
    return factor


@triton.jit
def _number(code, element: tl.constexpr):
    """A 4-bit code plus a constant, exactly. In 16 bits the code becomes the last bits of 1024 or 128, whose last bit
    is worth 1. This is cheaper than a conversion. Subtracting the zero point cancels the constant."""
    if element == tl.float16:
        return (code.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True)
    elif element == tl.bfloat16:
        return (code.to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True)
    else:
        return code.to(element)


@triton.jit
def _finish(sums, scales, bias, out, m, n, rows, outputs, SCALED: tl.constexpr, BIASED: tl.constexpr):
    if SCALED:
        sums *= tl.load(scales + n, mask=n < outputs, other=0.0)[None, :]
    if BIASED:
        sums += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    inside = (m[:, None] < rows) & (n[None, :] < outputs)
    tl.store(out + m[:, None] * outputs + n[None, :], sums.to(out.dtype.element_ty), mask=inside)
