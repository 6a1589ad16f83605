"""The convolution before the delta rule, with its activation and the normalisation of queries and keys."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.reference.gated_delta import LENGTH_EPS
from lightllm_mp.kernels.table import DeltaLayout, DeltaState, DeltaWeights
from lightllm_mp.kernels.triton.block_sizes import next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel, wait_for_inputs

TOKENS = 16
"""Tokens of a program in a step with many tokens."""


def convolve(
    projected: Tensor,
    weights: DeltaWeights,
    state: DeltaState,
    batch: Batch,
    layout: DeltaLayout,
    token_rows: Tensor | None,
) -> Tensor:
    """[tokens, channels]: queries, keys and values; queries and keys have length 1, and queries are scaled.

    Reads the states only. `token_rows`: row and index of each token (`DeltaChunks`); None: each is alone in its
    sequence.
    """
    tokens = projected.shape[0]
    out = projected.new_empty((tokens, layout.channels))
    block = 1 if token_rows is None else TOKENS
    _convolve_kernel.launch(
        (2 * layout.key_heads + layout.value_heads, triton.cdiv(tokens, block), 1),
        _convolve_kernel.arguments(
            projected=projected,
            conv=weights.conv,
            inputs=state.conv,
            token_rows=batch.rows if token_rows is None else token_rows,
            out=out,
            tokens=tokens,
            scale=layout.key_dim**-0.5,
            KEY_HEADS=layout.key_heads,
            VALUE_HEADS=layout.value_heads,
            KEY_DIM=layout.key_dim,
            VALUE_DIM=layout.value_dim,
            TAPS=weights.conv.shape[0],
            SINGLE=token_rows is None,
            EPS=LENGTH_EPS,
            TOKENS=block,
            BLOCK=next_power_of_2(max(layout.key_dim, layout.value_dim)),
        ),
        warps=1 if token_rows is None else 4,
    )
    return out


@kernel(numbers=["tokens", "scale"], waits=True)
def _convolve_kernel(
    projected,
    conv,
    inputs,
    token_rows,
    out,
    tokens,
    scale,
    KEY_HEADS: tl.constexpr,
    VALUE_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TAPS: tl.constexpr,
    SINGLE: tl.constexpr,
    EPS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_inputs(EARLY)
    CHANNELS: tl.constexpr = 2 * KEY_HEADS * KEY_DIM + VALUE_HEADS * VALUE_DIM
    WIDTH: tl.constexpr = CHANNELS + VALUE_HEADS * VALUE_DIM
    head, token = tl.program_id(0), tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    i, there = tl.arange(0, BLOCK), token < tokens
    is_value = head >= 2 * KEY_HEADS
    width = tl.where(is_value, VALUE_DIM, KEY_DIM)
    channel = i + tl.where(is_value, 2 * KEY_HEADS * KEY_DIM + (head - 2 * KEY_HEADS) * VALUE_DIM, head * KEY_DIM)
    if SINGLE:
        row, index = tl.load(token_rows + token, mask=there, other=0), token * 0
    else:
        row = tl.load(token_rows + 2 * token, mask=there, other=0)
        index = tl.load(token_rows + 2 * token + 1, mask=there, other=0)
    inside = there[:, None] & (i < width)[None, :]
    total = tl.zeros((TOKENS, BLOCK), tl.float32)
    for tap in tl.static_range(TAPS):
        back = TAPS - 1 - tap
        new = (index >= back)[:, None]
        here = projected + (token - back).to(tl.int64)[:, None] * WIDTH + channel[None, :]
        kept = inputs + (row.to(tl.int64) * (TAPS - 1) + index + tap)[:, None] * CHANNELS + channel[None, :]
        value = tl.load(here, mask=inside & new, other=0.0)
        if back:
            value = tl.where(new, value, tl.load(kept, mask=inside & (index < back)[:, None], other=0.0))
        factor = tl.load(conv + tap * CHANNELS + channel, mask=i < width, other=0.0)
        total += value.to(tl.float32) * factor.to(tl.float32)[None, :]
    mixed = total / (1.0 + tl.exp(-total))
    if not is_value:
        length = tl.sqrt(tl.sum(mixed * mixed, 1) + EPS)
        mixed = mixed * (tl.where(head < KEY_HEADS, scale, 1.0) / length)[:, None]
    place = out + token.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    tl.store(place, mixed.to(out.dtype.element_ty), mask=inside)
