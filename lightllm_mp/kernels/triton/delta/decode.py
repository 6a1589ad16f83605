"""The gated delta rule for sequences with one new token: a state is read and written once."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import DeltaLayout, DeltaState, DeltaWeights
from lightllm_mp.kernels.triton.block_sizes import next_power_of_2
from lightllm_mp.kernels.triton.delta.states import keep_head_inputs, log_decay
from lightllm_mp.kernels.triton.launch import kernel, wait_for_inputs


def decode(
    mixed: Tensor,
    projected: Tensor,
    ba: Tensor,
    out: Tensor,
    weights: DeltaWeights,
    state: DeltaState,
    batch: Batch,
    layout: DeltaLayout,
) -> None:
    """Fills the rows of `out` of sequences with one new token and advances their states. `mixed`: from `convolve`."""
    _decode_kernel.launch(
        (layout.value_heads, batch.sequences, 1),
        _decode_kernel.arguments(
            mixed=mixed,
            projected=projected,
            ba=ba,
            dt_bias=weights.dt_bias,
            decay=weights.decay,
            factors=weights.norm,
            recurrent=state.recurrent,
            inputs=state.conv,
            seq_start=batch.seq_start,
            rows=batch.rows,
            out=out,
            eps=layout.norm_eps,
            HEADS=layout.value_heads,
            TIMES=layout.value_heads // layout.key_heads,
            KEY_DIM=layout.key_dim,
            VALUE_DIM=layout.value_dim,
            TAPS=weights.conv.shape[0],
            KEY_BLOCK=next_power_of_2(layout.key_dim),
            VALUE_BLOCK=next_power_of_2(layout.value_dim),
        ),
        warps=8 if layout.key_dim * layout.value_dim >= 1 << 14 else 4,
    )


@kernel(numbers=["eps"], waits=True)
def _decode_kernel(
    mixed,
    projected,
    ba,
    dt_bias,
    decay,
    factors,
    recurrent,
    inputs,
    seq_start,
    rows,
    out,
    eps,
    HEADS: tl.constexpr,
    TIMES: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TAPS: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_inputs(EARLY)
    KEYS: tl.constexpr = HEADS // TIMES * KEY_DIM
    CHANNELS: tl.constexpr = 2 * KEYS + HEADS * VALUE_DIM
    WIDTH: tl.constexpr = CHANNELS + HEADS * VALUE_DIM
    head, sequence = tl.program_id(0), tl.program_id(1)
    token = tl.load(seq_start + sequence)
    new = tl.load(seq_start + sequence + 1) - token
    if new == 1:
        row = tl.load(rows + sequence)
        k_at, v_at = tl.arange(0, KEY_BLOCK), tl.arange(0, VALUE_BLOCK)
        is_key, is_value = k_at < KEY_DIM, v_at < VALUE_DIM
        place = recurrent + (row.to(tl.int64) * HEADS + head) * (KEY_DIM * VALUE_DIM)
        place = place + k_at[:, None] * VALUE_DIM + v_at[None, :]
        inside = is_key[:, None] & is_value[None, :]
        state = tl.load(place, mask=inside, other=0.0)
        start = mixed + token.to(tl.int64) * CHANNELS
        q = tl.load(start + head // TIMES * KEY_DIM + k_at, mask=is_key, other=0.0).to(tl.float32)
        k = tl.load(start + KEYS + head // TIMES * KEY_DIM + k_at, mask=is_key, other=0.0).to(tl.float32)
        v = tl.load(start + 2 * KEYS + head * VALUE_DIM + v_at, mask=is_value, other=0.0).to(tl.float32)
        log, beta = log_decay(ba, dt_bias, decay, token, head, token >= 0, HEADS)
        state = state * tl.exp(log)
        error = beta * (v - tl.sum(state * k[:, None], 0))
        state += k[:, None] * error[None, :]
        tl.store(place, state, mask=inside)
        x = tl.sum(state * q[:, None], 0)
        x = x * tl.rsqrt(tl.sum(x * x) / VALUE_DIM + eps) * tl.load(factors + v_at, mask=is_value, other=0.0)
        gate_at = projected + token.to(tl.int64) * WIDTH + CHANNELS + head * VALUE_DIM + v_at
        gate = tl.load(gate_at, mask=is_value, other=0.0).to(tl.float32)
        x = x * gate / (1.0 + tl.exp(-gate))
        tl.store(
            out + (token.to(tl.int64) * HEADS + head) * VALUE_DIM + v_at, x.to(out.dtype.element_ty), mask=is_value
        )
        keep_head_inputs(
            projected, inputs, token, new, row, row, head,
            TIMES, HEADS, KEY_DIM, VALUE_DIM, KEY_BLOCK, VALUE_BLOCK, TAPS,
        )  # fmt: skip
