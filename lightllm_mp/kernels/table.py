"""The op table: every operation a decoder is made of, as callables of fixed meaning.

A table is filled once per process by `select`. The functions in `kernels/reference` define each op; faster ones must
agree with them within rounding. Activations are [tokens, features], contiguous, in the model's dtype; arithmetic
inside an op is float32, rounded once at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightllm_mp.kernels.batch import Batch

Prepared = Any
"""A weight in the form that the table's own `linear` wants."""


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """How a fused projection row is cut: `heads` queries, then `kv_heads` keys, then `kv_heads` values."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    """Factor on the scores before the softmax."""
    window: int = 0
    """A query sees itself and the `window - 1` keys before it; 0: all keys before it."""


@dataclass(frozen=True, slots=True)
class OpTable:
    """One callable per op. `name` says whose they are, `exact_rows` whether a token's result is bitwise independent
    of the other tokens of the step."""

    name: str
    exact_rows: bool

    prepare_linear: Callable[[Tensor, Tensor | None], Prepared]
    """(weight [n, k], bias [n] or None) -> what `linear` takes. May copy; the caller drops the originals."""
    linear: Callable[[Tensor, Prepared], Tensor]
    """(x [tokens, k]) -> x @ weight.T + bias, [tokens, n] in x's dtype."""
    linear_float: Callable[[Tensor, Prepared], Tensor]
    """As `linear`, but the result is float32 and not rounded to x's dtype: for logits."""
    embedding: Callable[[Tensor, Tensor], Tensor]
    """(ids [tokens], table [vocab, hidden]) -> [tokens, hidden]."""
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """(x, weight [hidden], eps) -> x / sqrt(mean(x^2) + eps) * weight."""
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    """(x, residual, weight, eps): residual += x in place, rounded to its dtype; returns rms_norm(residual)."""
    rotary_kv_write: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Batch, HeadLayout], Tensor]
    """(qkv, cos, sin [positions, dim / 2] float32, keys, values, batch, layout): rotates queries and keys, writes keys
    and values of the new tokens to their slots, returns the rotated queries [tokens, heads * head_dim]. It may use
    qkv's memory for the result."""
    attention: Callable[[Tensor, Tensor, Tensor, Batch, HeadLayout], Tensor]
    """(q [tokens, heads * head_dim], keys, values [slots, kv_heads, head_dim], batch, layout): causal attention of
    each new token over its sequence's slots, [tokens, heads * head_dim]."""
    silu_mul: Callable[[Tensor], Tensor]
    """(gate and up side by side [tokens, 2 * n]) -> silu(gate) * up, [tokens, n]."""
