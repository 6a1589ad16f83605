"""The grouped GEMM: multiplies rows by the weights of their expert, tile by tile."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.reference.quantised import LARGEST
from lightllm_mp.kernels.triton.activations import ACTIVATIONS, gated
from lightllm_mp.kernels.triton.launch import kernel
from lightllm_mp.kernels.triton.linear.fp8 import rounded_to_fp8
from lightllm_mp.kernels.triton.moe.expert_matrix import ExpertMatrix
from lightllm_mp.kernels.triton.moe.expert_tiles import ExpertTiles
from lightllm_mp.kernels.triton.moe.mxfp4 import Mxfp4Experts, conversion, weights_of
from lightllm_mp.kernels.triton.moe.tuned_moe import ProductBlocks

LEAST_ROWS = tl.constexpr(64)


def gate_up(
    x: Tensor,
    weight: ExpertMatrix | Mxfp4Experts,
    bias: Tensor | None,
    at: ExpertTiles,
    out: Tensor,
    rows: int,
    by: ProductBlocks,
    together: int,
    activation: str,
    x_scales: Tensor | None = None,
    out_scales: Tensor | None = None,
) -> None:
    """out[i] = gated(gate beside up) of the i-th assignment in order; x [tokens, k], weight [experts, 2 * n, k], bias
    [experts, 2 * n]. With `x_scales` x, weight and out are 8-bit floats, with scales as `linear/fp8.py` makes them:
    [k / 128, tokens] and [n / 128, assignments]; `by` then has 128 columns."""
    top_k = at.order.shape[0] // x.shape[0]
    _launch(x, weight, bias, at, out, rows, by, together, top_k, ACTIVATIONS[activation], x_scales, out_scales)


def down(
    x: Tensor,
    weight: ExpertMatrix | Mxfp4Experts,
    bias: Tensor | None,
    at: ExpertTiles,
    out: Tensor,
    rows: int,
    by: ProductBlocks,
    together: int,
    x_scales: Tensor | None = None,
) -> None:
    """out[a] = x[i] @ weight.T + bias where assignment a is the i-th in order; weight [experts, n, k], bias
    [experts, n]. `x_scales` [k / 128, assignments]: x and weight are 8-bit floats."""
    _launch(x, weight, bias, at, out, rows, by, together, x_scales=x_scales)


def _launch(
    x: Tensor,
    weight: ExpertMatrix | Mxfp4Experts,
    bias: Tensor | None,
    at: ExpertTiles,
    out: Tensor,
    rows: int,
    by: ProductBlocks,
    together: int,
    top_k: int = 1,
    gate: int = -1,
    x_scales: Tensor | None = None,
    out_scales: Tensor | None = None,
) -> None:
    """Launches the kernel. `gate`: the activation's number if outputs are gated, else -1."""
    n, k = out.shape[1], x.shape[1]
    packed = isinstance(weight, Mxfp4Experts)
    values = weight.codes if isinstance(weight, Mxfp4Experts) else weight.values
    group, shared = (0, 1) if isinstance(weight, Mxfp4Experts) else (weight.group, weight.scale_outputs)
    programs = triton.cdiv(at.places, together) * together * triton.cdiv(n, by.columns)
    _grouped_kernel.launch(
        (programs, 1, 1),
        _grouped_kernel.arguments(
            x=x,
            weight=values,
            x_scales=at.order if x_scales is None else x_scales,
            scales=values if weight.scales is None else weight.scales,
            out_scales=at.order if out_scales is None else out_scales,
            bias=at.order if bias is None else bias,
            order=at.order,
            tiles=at.tiles,
            out=out,
            places=at.places,
            lines=x.shape[0],
            GATED=gate >= 0,
            PACKED=packed,
            BY=conversion(x) if packed else None,
            IN_8_BITS=x_scales is not None,
            SHARED=shared % by.columns == 0,
            LARGEST=LARGEST["fp8"],
            BIASED=bias is not None,
            TOP_K=top_k,
            KIND=gate,
            N=n,
            K=k,
            ROWS=rows,
            COLUMNS=by.columns,
            INPUTS=min(by.inputs, group or by.inputs),
            TOGETHER=together,
            GROUP=group,
        ),
        warps=by.warps,
        stages=by.stages,
    )


@kernel(numbers=["places", "lines"])
def _grouped_kernel(
    x,
    weight,
    x_scales,
    scales,
    out_scales,
    bias,
    order,
    tiles,
    out,
    places,
    lines,
    GATED: tl.constexpr,
    PACKED: tl.constexpr,
    BY: tl.constexpr,
    IN_8_BITS: tl.constexpr,
    SHARED: tl.constexpr,
    LARGEST: tl.constexpr,
    BIASED: tl.constexpr,
    TOP_K: tl.constexpr,
    KIND: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INPUTS: tl.constexpr,
    TOGETHER: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Neighbouring programs take the same columns of neighbouring tiles, which often share the expert.

    `IN_8_BITS`: both operands are 8-bit floats, and so is a GATED result, of which a program makes one group.
    `SHARED`: all columns of a program have the same scales.
    """
    BLOCKS: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    tile = program // (TOGETHER * BLOCKS) * TOGETHER + program % TOGETHER
    if tile >= places:
        return
    expert = tl.load(tiles + 3 * tile).to(tl.int64)
    if expert < 0:
        return
    first, count = tl.load(tiles + 3 * tile + 1), tl.load(tiles + 3 * tile + 2)
    lane = tl.arange(0, ROWS)
    place = first + tl.minimum(lane, count - 1)
    assignment = tl.load(order + place)
    column = program % (TOGETHER * BLOCKS) // TOGETHER * COLUMNS + tl.arange(0, COLUMNS)
    source = assignment // TOP_K if GATED else place
    x_rows = x + source.to(tl.int64)[:, None] * K
    column_at = tl.minimum(column, N - 1)
    outputs = 2 * N if GATED else N
    if PACKED:
        sums, ups = _packed_products(x_rows, weight, scales, expert, column_at, GATED, BY, N, K, ROWS, COLUMNS)
    elif IN_8_BITS:
        sums, ups = _products_in_8_bits(
            x_rows,
            x_scales + source,
            lines,
            weight,
            scales,
            expert,
            column_at,
            GATED,
            SHARED,
            N,
            K,
            ROWS,
            COLUMNS,
            GROUP,
        )
    else:
        sums, ups = _products(x_rows, weight, scales, expert, column_at, GATED, N, K, ROWS, COLUMNS, INPUTS, GROUP)
    if BIASED:
        sums += tl.load(bias + expert * outputs + column_at).to(tl.float32)[None, :]
        if GATED:
            ups += tl.load(bias + expert * outputs + N + column_at).to(tl.float32)[None, :]
    if GATED:
        sums = gated(sums, ups, KIND)
    target = place if GATED else assignment
    if GATED and IN_8_BITS:
        sums, scale = rounded_to_fp8(sums, LARGEST)
        group = tl.program_id(0) % (TOGETHER * BLOCKS) // TOGETHER
        tl.store(out_scales + group * (lines * TOP_K) + place, scale, mask=lane < count)
    inside = (lane < count)[:, None] & (column < N)[None, :]
    tl.store(out + target.to(tl.int64)[:, None] * N + column[None, :], sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _products(
    x_rows,
    weight,
    scales,
    expert,
    column,
    GATED: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INPUTS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Rows times columns of a plain or scaled weight; if GATED, also times the columns N further on."""
    inner = tl.arange(0, INPUTS)
    outputs = 2 * N if GATED else N
    x_at = x_rows + inner[None, :]
    w_at = weight + expert * (outputs * K) + column[None, :] * K + inner[:, None]
    if GROUP:
        scales += expert * ((K + GROUP - 1) // GROUP * outputs) + column
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    ups = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, K, INPUTS):
        if K % INPUTS == 0:
            a, w = tl.load(x_at + start), tl.load(w_at + start)
        else:
            left = inner < K - start
            a = tl.load(x_at + start, mask=left[None, :], other=0.0)
            w = tl.load(w_at + start, mask=left[:, None], other=0.0)
        if GROUP:
            scale = tl.load(scales + start // GROUP * outputs)
            sums += tl.dot(a, w.to(a.dtype), input_precision="ieee") * scale[None, :]
        else:
            sums = tl.dot(a, w, sums, input_precision="ieee")
        if GATED:
            if K % INPUTS == 0:
                w = tl.load(w_at + N * K + start)
            else:
                w = tl.load(w_at + N * K + start, mask=(inner < K - start)[:, None], other=0.0)
            if GROUP:
                scale = tl.load(scales + start // GROUP * outputs + N)
                ups += tl.dot(a, w.to(a.dtype), input_precision="ieee") * scale[None, :]
            else:
                ups = tl.dot(a, w, ups, input_precision="ieee")
    return sums, ups


@triton.jit
def _products_in_8_bits(
    x_rows,
    x_scales,
    lines,
    weight,
    scales,
    expert,
    column,
    GATED: tl.constexpr,
    SHARED: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The same for 8-bit floats, group by group. Scales of one row are `lines` apart."""
    inner = tl.arange(0, GROUP)
    outputs = 2 * N if GATED else N
    x_at = x_rows + inner[None, :]
    w_at = weight + expert * (outputs * K) + column[:, None] * K + inner[None, :]
    scales += expert * (K // GROUP * outputs)
    SWAPPED: tl.constexpr = ROWS < LEAST_ROWS
    sums = tl.zeros((COLUMNS, ROWS) if SWAPPED else (ROWS, COLUMNS), tl.float32)
    ups = tl.zeros_like(sums)
    for group in range(K // GROUP):
        a, x_scale = tl.load(x_at + group * GROUP), tl.load(x_scales + group * lines)
        s_at, w = scales + group * outputs, tl.load(w_at + group * GROUP)
        sums += _scaled(a, w, x_scale, s_at, column, SHARED, SWAPPED)
        if GATED:
            w = tl.load(w_at + N * K + group * GROUP)
            ups += _scaled(a, w, x_scale, s_at + N, column, SHARED, SWAPPED)
    if SWAPPED:
        sums, ups = tl.trans(sums), tl.trans(ups)
    return sums, ups


@triton.jit
def _scaled(a, w, x_scale, scales, column, SHARED: tl.constexpr, SWAPPED: tl.constexpr):
    """The product of one group. SWAPPED: its transpose, because the matrix instruction for 8-bit floats needs at least
    LEAST_ROWS rows on the left."""
    if SHARED:
        x_scale *= tl.load(scales + tl.min(column, 0))
    if SWAPPED:
        result = tl.dot(w, tl.trans(a)) * x_scale[None, :]
    else:
        result = tl.dot(a, tl.trans(w)) * x_scale[:, None]
    if not SHARED:
        by = tl.load(scales + column)
        result *= by[:, None] if SWAPPED else by[None, :]
    return result


@triton.jit
def _packed_products(
    x_rows,
    codes,
    scales,
    expert,
    column,
    GATED: tl.constexpr,
    BY: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The same for a weight in MXFP4: the low and the high codes of a step are operands of two products."""
    STEPS: tl.constexpr = (K + 63) // 64
    outputs = 2 * N if GATED else N
    inner = tl.arange(0, 32)
    x_at = x_rows + inner[None, :]
    c_at = codes + (expert * outputs + column[None, :]) * (STEPS * 32) + inner[:, None]
    s_at = scales + expert * (STEPS * outputs) + column
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    ups = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(STEPS):
        if K % 64 == 0:
            left, right = tl.load(x_at + step * 64), tl.load(x_at + step * 64 + 32)
        else:
            left = tl.load(x_at + step * 64, mask=(inner < K - step * 64)[None, :], other=0.0)
            right = tl.load(x_at + step * 64 + 32, mask=(inner < K - step * 64 - 32)[None, :], other=0.0)
        code, scale = tl.load(c_at + step * 32), tl.load(s_at + step * outputs)
        low, high = weights_of(code, scale[None, :], left.dtype, BY)
        sums = tl.dot(left, low, sums, input_precision="ieee")
        sums = tl.dot(right, high, sums, input_precision="ieee")
        if GATED:
            code, scale = tl.load(c_at + N * STEPS * 32 + step * 32), tl.load(s_at + N + step * outputs)
            low, high = weights_of(code, scale[None, :], left.dtype, BY)
            ups = tl.dot(left, low, ups, input_precision="ieee")
            ups = tl.dot(right, high, ups, input_precision="ieee")
    return sums, ups
