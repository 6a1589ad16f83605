"""The grouped product: rows times the weights of their expert, tile by tile."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.triton.activations import ACTIVATIONS, activated
from lightllm_mp.kernels.triton.launch import kernel
from lightllm_mp.kernels.triton.moe.expert_matrix import ExpertMatrix
from lightllm_mp.kernels.triton.moe.expert_tiles import ExpertTiles
from lightllm_mp.kernels.triton.moe.tuned_moe import ProductBlocks


def gate_up(
    x: Tensor,
    weight: ExpertMatrix,
    at: ExpertTiles,
    out: Tensor,
    rows: int,
    by: ProductBlocks,
    together: int,
    activation: str,
) -> None:
    """out[i] = activation(gate) * up of the i-th assignment in order; x [tokens, k], weight [experts, 2 * n, k]."""
    top_k = at.order.shape[0] // x.shape[0]
    _launch(x, weight, at, out, rows, by, together, top_k, ACTIVATIONS[activation])


def down(
    x: Tensor, weight: ExpertMatrix, at: ExpertTiles, out: Tensor, rows: int, by: ProductBlocks, together: int
) -> None:
    """out[a] = x[i] @ weight.T where assignment a is the i-th in order; weight [experts, n, k]."""
    _launch(x, weight, at, out, rows, by, together)


def _launch(
    x: Tensor,
    weight: ExpertMatrix,
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
    programs = triton.cdiv(at.places, together) * together * triton.cdiv(n, by.columns)
    _grouped_kernel.launch(
        (programs, 1, 1),
        _grouped_kernel.arguments(
            x=x,
            weight=weight.values,
            scales=weight.values if weight.scales is None else weight.scales,
            order=at.order,
            tiles=at.tiles,
            out=out,
            places=at.places,
            GATED=gate >= 0,
            TOP_K=top_k,
            KIND=gate,
            N=n,
            K=k,
            ROWS=rows,
            COLUMNS=by.columns,
            INPUTS=min(by.inputs, weight.group or by.inputs),
            TOGETHER=together,
            GROUP=weight.group,
        ),
        warps=by.warps,
        stages=by.stages,
    )


@kernel(numbers=["places"])
def _grouped_kernel(
    x,
    weight,
    scales,
    order,
    tiles,
    out,
    places,
    GATED: tl.constexpr,
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
    inner = tl.arange(0, INPUTS)
    source = assignment // TOP_K if GATED else place
    x_at = x + source.to(tl.int64)[:, None] * K + inner[None, :]
    outputs = 2 * N if GATED else N
    w_at = weight + expert * (outputs * K) + tl.minimum(column, N - 1)[None, :] * K + inner[:, None]
    if GROUP:
        scales += expert * ((K + GROUP - 1) // GROUP * outputs) + tl.minimum(column, N - 1)
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
    if GATED:
        sums = activated(sums, KIND) * ups
    target = place if GATED else assignment
    inside = (lane < count)[:, None] & (column < N)[None, :]
    tl.store(out + target.to(tl.int64)[:, None] * N + column[None, :], sums.to(out.dtype.element_ty), mask=inside)
