"""Reference gated delta rule (arXiv 2412.06464), with the convolution before it and the gated norm behind it.

In float32, token by token. With the state S [key_dim, value_dim] of a value head, its query q, key k and value v:

    S = decay * S;  S = S + k outer (beta * (v - S^T k));  out = S^T q

where decay = exp(-exp(A_log) * softplus(a + dt_bias)) and beta = sigmoid(b). q and k are divided by their lengths, and
q by sqrt(key_dim).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import DeltaLayout, DeltaState, DeltaWeights

LENGTH_EPS = 1e-6
"""Added to the square of the length of a query or key."""


def gated_delta(
    projected: Tensor, ba: Tensor, weights: DeltaWeights, state: DeltaState, batch: Batch, layout: DeltaLayout
) -> Tensor:
    mixed, gates = projected.float().split((layout.channels, layout.value_size), -1)
    beta, decay = gate_factors(ba, weights)
    out = torch.empty_like(gates)
    for first, end, row, keep in segments(batch):
        new = slice(first, end)
        before = torch.cat((state.conv[row].float(), mixed[new]))
        q, k, v = heads(convolve(before, weights.conv), layout)
        out[new] = delta_rule(q, k, v, beta[new], decay[new], state.recurrent[row]).flatten(1)
        state.conv[row] = before[len(before) - state.conv.shape[1] :].to(state.conv.dtype)
        if keep is not None:
            state.recurrent[keep] = state.recurrent[row]
            state.conv[keep] = state.conv[row]
    return gated_norm(out, gates, weights.norm, layout).to(projected.dtype)


def segments(batch: Batch) -> Iterator[tuple[int, int, int, int | None]]:
    """(first token, token behind the last, row, place that keeps the state at the end) of the step's sequences, which
    are cut where a state is kept."""
    start, rows = batch.seq_start.tolist(), batch.rows.tolist()
    saves = list(batch.state_saves)
    for i, row in enumerate(rows):
        first = start[i]
        while saves and saves[0].sequence == i:
            save = saves.pop(0)
            yield first, start[i] + save.tokens, row, save.place
            first = start[i] + save.tokens
        if first < start[i + 1]:
            yield first, start[i + 1], row, None


def gate_factors(ba: Tensor, weights: DeltaWeights) -> tuple[Tensor, Tensor]:
    """beta and decay, float32 [tokens, value heads] each."""
    b, a = ba.chunk(2, -1)
    return b.sigmoid(), (-weights.decay * functional.softplus(a + weights.dt_bias)).exp()


def convolve(inputs: Tensor, conv: Tensor) -> Tensor:
    """inputs [taps - 1 + tokens, channels] -> silu of the causal convolution, [tokens, channels]."""
    taps, tokens = conv.shape[0], inputs.shape[0] - conv.shape[0] + 1
    return functional.silu(sum(inputs[i : i + tokens] * conv[i].float() for i in range(taps)))


def heads(mixed: Tensor, layout: DeltaLayout) -> tuple[Tensor, Tensor, Tensor]:
    """q and k [tokens, value heads, key_dim], normalised and scaled, and v [tokens, value heads, value_dim]."""
    q, k, v = mixed.split((layout.key_size, layout.key_size, layout.value_size), -1)
    times = layout.value_heads // layout.key_heads

    def each(x: Tensor) -> Tensor:
        x = x.unflatten(-1, (layout.key_heads, layout.key_dim))
        x = x * (x.square().sum(-1, keepdim=True) + LENGTH_EPS).rsqrt()
        return x.repeat_interleave(times, 1)

    return each(q) * layout.key_dim**-0.5, each(k), v.unflatten(-1, (layout.value_heads, layout.value_dim))


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, state: Tensor) -> Tensor:
    """Moves `state` [heads, key_dim, value_dim] on by the tokens, in place; returns the outputs, shaped as v."""
    out = torch.empty_like(v)
    for i in range(v.shape[0]):
        state *= decay[i, :, None, None]
        error = (v[i] - torch.einsum("hkv,hk->hv", state, k[i])) * beta[i, :, None]
        state += k[i].unsqueeze(2) * error.unsqueeze(1)
        out[i] = torch.einsum("hkv,hk->hv", state, q[i])
    return out


def gated_norm(x: Tensor, gates: Tensor, factor: Tensor, layout: DeltaLayout) -> Tensor:
    """x / rms(x) * factor * silu(gate), by head."""
    wide = x.unflatten(-1, (layout.value_heads, layout.value_dim))
    wide = wide * (wide.square().mean(-1, keepdim=True) + layout.norm_eps).rsqrt() * factor
    return wide.flatten(1) * functional.silu(gates)
