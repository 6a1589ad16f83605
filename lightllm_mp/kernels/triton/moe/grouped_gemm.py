"""The grouped product: rows times the weights of their expert, tile by tile."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.triton.activations import ACTIVATIONS, gated
from lightllm_mp.kernels.triton.launch import kernel
from lightllm_mp.kernels.triton.moe.expert_matrix import ExpertMatrix
from lightllm_mp.kernels.triton.moe.expert_tiles import ExpertTiles
from lightllm_mp.kernels.triton.moe.mxfp4 import Mxfp4Experts, conversion, weights_of
from lightllm_mp.kernels.triton.moe.tuned_moe import ProductBlocks


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
) -> None:
    """out[i] = gated(gate beside up) of the i-th assignment in order; x [tokens, k], weight [experts, 2 * n, k], bias
    [experts, 2 * n]."""
    top_k = at.order.shape[0] // x.shape[0]
    _launch(x, weight, bias, at, out, rows, by, together, top_k, ACTIVATIONS[activation])


def down(
    x: Tensor,
    weight: ExpertMatrix | Mxfp4Experts,
    bias: Tensor | None,
    at: ExpertTiles,
    out: Tensor,
    rows: int,
    by: ProductBlocks,
    together: int,
) -> None:
    """out[a] = x[i] @ weight.T + bias where assignment a is the i-th in order; weight [experts, n, k], bias
    [experts, n]."""
    _launch(x, weight, bias, at, out, rows, by, together)


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
) -> None:
    """`gate`: the activation's number if outputs are gated, else -1."""
    n, k = out.shape[1], x.shape[1]
    packed = isinstance(weight, Mxfp4Experts)
    values = weight.codes if isinstance(weight, Mxfp4Experts) else weight.values
    group = 0 if isinstance(weight, Mxfp4Experts) else weight.group
    programs = triton.cdiv(at.places, together) * together * triton.cdiv(n, by.columns)
    _grouped_kernel.launch(
        (programs, 1, 1),
        _grouped_kernel.arguments(
            x=x,
            weight=values,
            scales=values if weight.scales is None else weight.scales,
            bias=x if bias is None else bias,
            order=at.order,
            tiles=at.tiles,
            out=out,
            places=at.places,
            GATED=gate >= 0,
            PACKED=packed,
            BY=conversion(x) if packed else None,
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


@kernel(numbers=["places"])
def _grouped_kernel(
    x,
    weight,
    scales,
    bias,
    order,
    tiles,
    out,
    places,
    GATED: tl.constexpr,
    PACKED: tl.constexpr,
    BY: tl.constexpr,
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
    """Neighbouring programs take the same columns of neighbouring tiles, which often share the expert."""
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
    else:
        sums, ups = _products(x_rows, weight, scales, expert, column_at, GATED, N, K, ROWS, COLUMNS, INPUTS, GROUP)
    if BIASED:
        sums += tl.load(bias + expert * outputs + column_at).to(tl.float32)[None, :]
        if GATED:
            ups += tl.load(bias + expert * outputs + N + column_at).to(tl.float32)[None, :]
    if GATED:
        sums = gated(sums, ups, KIND)
    target = place if GATED else assignment
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
    """Rows times columns of a weight, which is plain or has scales; where it is GATED, and times those N further."""
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
    """The same for a weight in MXFP4: a step's low and high codes are operands of two products."""
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
