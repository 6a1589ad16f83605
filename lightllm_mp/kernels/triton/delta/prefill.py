"""The gated delta rule for many new tokens, in chunks (arXiv 2412.06464, section 3.3).

Within a chunk let G_i be the sum of the logarithms of the decays up to token i, and
A_ij = beta_i exp(G_i - G_j) k_i . k_j for j < i. With T = (I + A)^-1, the tokens add to the state S before the chunk

    U = T (beta V) - T (beta exp(G) K) S = `added` - `seen` S

so out_i = exp(G_i) q_i S + sum over j <= i of exp(G_i - G_j) (q_i . k_j) U_j, and the state behind the chunk is
exp(G_last) S + sum over j of exp(G_last - G_j) k_j outer U_j.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import DeltaLayout, DeltaState, DeltaWeights
from lightllm_mp.kernels.triton.attention.tuned_attention import precision
from lightllm_mp.kernels.triton.block_sizes import dot_block
from lightllm_mp.kernels.triton.delta.chunks import CHUNK, DeltaChunks
from lightllm_mp.kernels.triton.delta.states import keep_head_inputs, log_decay
from lightllm_mp.kernels.triton.launch import kernel

COLUMNS, LEAST_COLUMNS = 32, 16
"""Columns of a state that a program of the scan holds, in 16 bits and in float32, which takes more registers."""


class ChunkFactors(NamedTuple):
    """The parts of the chunks that do not depend on the state (see above)."""

    sums: Tensor
    """G of each token [tokens, value heads] float32."""
    seen: Tensor
    """[tokens, value heads, key dim]"""
    added: Tensor
    """[tokens, value heads, value dim]"""


def prefill(
    mixed: Tensor,
    projected: Tensor,
    ba: Tensor,
    out: Tensor,
    weights: DeltaWeights,
    state: DeltaState,
    batch: Batch,
    layout: DeltaLayout,
    chunks: DeltaChunks,
) -> None:
    """Fills the rows of `out` of all tokens in chunks and advances the states of their sequences."""
    factors = _factors(mixed, ba, weights, layout, chunks)
    _scan(mixed, projected, factors, out, weights, state, batch, layout, chunks)
    _norm_kernel.launch(
        (layout.value_heads, chunks.tiles.shape[0], 1),
        _norm_kernel.arguments(
            projected=projected,
            factors=weights.norm,
            tiles=chunks.tiles,
            out=out,
            eps=layout.norm_eps,
            HEADS=layout.value_heads,
            CHANNELS=layout.channels,
            VALUE_DIM=layout.value_dim,
            CHUNK=CHUNK,
            BLOCK=dot_block(layout.value_dim),
        ),
    )


def _factors(
    mixed: Tensor, ba: Tensor, weights: DeltaWeights, layout: DeltaLayout, chunks: DeltaChunks
) -> ChunkFactors:
    tokens, heads = mixed.shape[0], layout.value_heads
    factors = ChunkFactors(
        sums=torch.empty((tokens, heads), dtype=torch.float32, device=mixed.device),
        seen=mixed.new_empty((tokens, heads, layout.key_dim)),
        added=mixed.new_empty((tokens, heads, layout.value_dim)),
    )
    _factor_kernel.launch(
        (heads, chunks.tiles.shape[0], 1),
        _factor_kernel.arguments(
            mixed=mixed,
            ba=ba,
            dt_bias=weights.dt_bias,
            decay=weights.decay,
            tiles=chunks.tiles,
            sums=factors.sums,
            seen=factors.seen,
            added=factors.added,
            HEADS=heads,
            TIMES=heads // layout.key_heads,
            KEY_DIM=layout.key_dim,
            VALUE_DIM=layout.value_dim,
            CHUNK=CHUNK,
            KEY_BLOCK=dot_block(layout.key_dim),
            VALUE_BLOCK=dot_block(layout.value_dim),
            PRECISION=precision(mixed.dtype),
        ),
        warps=4 if mixed.element_size() == 2 else 8,
    )
    return factors


def _scan(
    mixed: Tensor,
    projected: Tensor,
    factors: ChunkFactors,
    out: Tensor,
    weights: DeltaWeights,
    state: DeltaState,
    batch: Batch,
    layout: DeltaLayout,
    chunks: DeltaChunks,
) -> None:
    heads, narrow = layout.value_heads, mixed.element_size() == 2
    warps, columns = (4, min(COLUMNS, dot_block(layout.value_dim))) if narrow else (8, LEAST_COLUMNS)
    _scan_kernel.launch(
        (triton.cdiv(layout.value_dim, columns), heads, batch.sequences),
        _scan_kernel.arguments(
            mixed=mixed,
            projected=projected,
            sums=factors.sums,
            seen=factors.seen,
            added=factors.added,
            recurrent=state.recurrent,
            inputs=state.conv,
            tiles=chunks.tiles,
            first_chunk=chunks.first,
            seq_start=batch.seq_start,
            rows=batch.rows,
            out=out,
            HEADS=heads,
            TIMES=heads // layout.key_heads,
            KEY_DIM=layout.key_dim,
            VALUE_DIM=layout.value_dim,
            TAPS=weights.conv.shape[0],
            CHUNK=CHUNK,
            KEY_BLOCK=dot_block(layout.key_dim),
            VALUE_BLOCK=dot_block(layout.value_dim),
            COLUMNS=columns,
            PRECISION=precision(mixed.dtype),
        ),
        warps=warps,
        stages=2,
    )


@kernel()
def _factor_kernel(
    mixed,
    ba,
    dt_bias,
    decay,
    tiles,
    sums,
    seen,
    added,
    HEADS: tl.constexpr,
    TIMES: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The parts of a chunk that do not depend on the state: G, T (beta exp(G) K) and T (beta V)."""
    KEYS: tl.constexpr = HEADS // TIMES * KEY_DIM
    CHANNELS: tl.constexpr = 2 * KEYS + HEADS * VALUE_DIM
    head, tile = tl.program_id(0), tl.program_id(1)
    first, count = tl.load(tiles + 3 * tile), tl.load(tiles + 3 * tile + 1)
    if count > 0:
        i = tl.arange(0, CHUNK)
        there = i < count
        token = (first + i).to(tl.int64)
        k_at, v_at = tl.arange(0, KEY_BLOCK), tl.arange(0, VALUE_BLOCK)
        is_key, is_value = there[:, None] & (k_at < KEY_DIM)[None, :], there[:, None] & (v_at < VALUE_DIM)[None, :]
        log, beta = log_decay(ba, dt_bias, decay, first + i, head, there, HEADS)
        total = tl.cumsum(log, 0)
        tl.store(sums + token * HEADS + head, total, mask=there)
        key_row = mixed + token[:, None] * CHANNELS + KEYS + head // TIMES * KEY_DIM
        k = tl.load(key_row + k_at[None, :], mask=is_key, other=0.0)
        products = tl.dot(k, tl.trans(k), input_precision=PRECISION)
        below = i[:, None] > i[None, :]
        between = tl.exp(tl.where(below, total[:, None] - total[None, :], 0.0))
        a = tl.where(below, beta[:, None] * between * products, 0.0)
        # Forward substitution: row r of the inverse is that of the unit matrix less row r of A times the rows above.
        inverse = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
        for r in range(1, count):
            row = tl.sum(tl.where((i == r)[:, None], a, 0.0), 0)
            less = tl.sum(row[:, None] * inverse, 0)
            inverse = tl.where((i == r)[:, None], inverse - less[None, :], inverse)
        inverse = inverse.to(k.dtype)
        weighted = (k.to(tl.float32) * (beta * tl.exp(total))[:, None]).to(k.dtype)
        result = tl.dot(inverse, weighted, input_precision=PRECISION)
        place = (token * HEADS + head)[:, None]
        tl.store(seen + place * KEY_DIM + k_at[None, :], result.to(k.dtype), mask=is_key)
        value_row = mixed + token[:, None] * CHANNELS + 2 * KEYS + head * VALUE_DIM
        v = tl.load(value_row + v_at[None, :], mask=is_value, other=0.0)
        result = tl.dot(inverse, (v.to(tl.float32) * beta[:, None]).to(k.dtype), input_precision=PRECISION)
        tl.store(added + place * VALUE_DIM + v_at[None, :], result.to(k.dtype), mask=is_value)


@kernel()
def _scan_kernel(
    mixed,
    projected,
    sums,
    seen,
    added,
    recurrent,
    inputs,
    tiles,
    first_chunk,
    seq_start,
    rows,
    out,
    HEADS: tl.constexpr,
    TIMES: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TAPS: tl.constexpr,
    CHUNK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Advances some columns of one head of a sequence's state through its chunks."""
    KEYS: tl.constexpr = HEADS // TIMES * KEY_DIM
    CHANNELS: tl.constexpr = 2 * KEYS + HEADS * VALUE_DIM
    column, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    chunk, end = tl.load(first_chunk + sequence), tl.load(first_chunk + sequence + 1)
    if chunk < end:
        start, row = tl.load(seq_start + sequence), tl.load(rows + sequence)
        new = tl.load(seq_start + sequence + 1) - start
        i, k_at = tl.arange(0, CHUNK), tl.arange(0, KEY_BLOCK)
        v_at = column * COLUMNS + tl.arange(0, COLUMNS)
        within = (k_at < KEY_DIM)[:, None] & (v_at < VALUE_DIM)[None, :]
        element = head * (KEY_DIM * VALUE_DIM) + k_at[:, None] * VALUE_DIM + v_at[None, :]
        place_size = HEADS * KEY_DIM * VALUE_DIM
        state = tl.load(recurrent + row.to(tl.int64) * place_size + element, mask=within, other=0.0)
        for tile in range(chunk, end):
            first, count = tl.load(tiles + 3 * tile), tl.load(tiles + 3 * tile + 1)
            kept = tl.load(tiles + 3 * tile + 2)
            there, token = i < count, (first + i).to(tl.int64)
            is_key = there[:, None] & (k_at < KEY_DIM)[None, :]
            is_value = there[:, None] & (v_at < VALUE_DIM)[None, :]
            place = (token * HEADS + head)[:, None]
            key_row = mixed + token[:, None] * CHANNELS + head // TIMES * KEY_DIM + k_at[None, :]
            q = tl.load(key_row, mask=is_key, other=0.0)
            k = tl.load(key_row + KEYS, mask=is_key, other=0.0)
            total = tl.load(sums + token * HEADS + head, mask=there, other=0.0)
            last = tl.load(sums + (first + count - 1).to(tl.int64) * HEADS + head)
            w = tl.load(seen + place * KEY_DIM + k_at[None, :], mask=is_key, other=0.0)
            u = tl.load(added + place * VALUE_DIM + v_at[None, :], mask=is_value, other=0.0).to(tl.float32)
            held = state.to(q.dtype)
            u = (u - tl.dot(w, held, input_precision=PRECISION)).to(q.dtype)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            until = i[:, None] >= i[None, :]
            scores = tl.where(until, scores * tl.exp(tl.where(until, total[:, None] - total[None, :], 0.0)), 0.0)
            result = tl.dot(q, held, input_precision=PRECISION) * tl.exp(total)[:, None]
            result = tl.dot(scores.to(q.dtype), u, result, input_precision=PRECISION)
            tl.store(out + place * VALUE_DIM + v_at[None, :], result.to(out.dtype.element_ty), mask=is_value)
            left = (k.to(tl.float32) * tl.where(there, tl.exp(last - total), 0.0)[:, None]).to(q.dtype)
            state = tl.dot(tl.trans(left), u, state * tl.exp(last), input_precision=PRECISION)
            if kept >= 0:
                tl.store(recurrent + kept.to(tl.int64) * place_size + element, state, mask=within)
                if column == 0:
                    keep_head_inputs(
                        projected, inputs, start, first + count - start, row, kept, head,
                        TIMES, HEADS, KEY_DIM, VALUE_DIM, KEY_BLOCK, VALUE_BLOCK, TAPS,
                    )  # fmt: skip
        tl.store(recurrent + row.to(tl.int64) * place_size + element, state, mask=within)
        if column == 0:
            keep_head_inputs(
                projected, inputs, start, new, row, row, head,
                TIMES, HEADS, KEY_DIM, VALUE_DIM, KEY_BLOCK, VALUE_BLOCK, TAPS,
            )  # fmt: skip


@kernel(numbers=["eps"])
def _norm_kernel(
    projected,
    factors,
    tiles,
    out,
    eps,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gated norm of a chunk's results, in place."""
    head, tile = tl.program_id(0), tl.program_id(1)
    first, count = tl.load(tiles + 3 * tile), tl.load(tiles + 3 * tile + 1)
    i, v_at = tl.arange(0, CHUNK), tl.arange(0, BLOCK)
    token = (first + i).to(tl.int64)[:, None]
    inside = (i < count)[:, None] & (v_at < VALUE_DIM)[None, :]
    place = out + (token * HEADS + head) * VALUE_DIM + v_at[None, :]
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, 1) / VALUE_DIM + eps)[:, None]
    x = x * tl.load(factors + v_at, mask=v_at < VALUE_DIM, other=0.0)[None, :]
    gate_at = projected + token * (CHANNELS + HEADS * VALUE_DIM) + CHANNELS + head * VALUE_DIM + v_at[None, :]
    gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, (x * gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty), mask=inside)
