"""The op table: every operation a decoder is made of, as callables of fixed meaning.

A table is filled once per process by `select`. The functions in `kernels/reference` define each op; faster ones must
agree with them within rounding. Activations are [tokens, features], contiguous, in the model's dtype; arithmetic
inside an op is float32, rounded once at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, dtype

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.quantised import QuantisedWeight

Prepared = Any
"""A weight in the form that the table's own `linear` or `experts` wants."""


ExpertWeights = Any
"""Tensor [experts, n, k]; with `block_types` it may be a tuple of a `BlockWeight` for each expert."""


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
    softcap: float = 0.0
    """Scaled scores become cap * tanh(score / cap); 0: off."""
    alibi: tuple[float, ...] = ()
    """A slope per query head: slope * (key position - query position) is added to the scaled score."""
    interleaved: bool = False
    """Rotary pairs are (2i, 2i + 1) and not (i, i + dim / 2)."""
    value_dim: int = 0
    """Components of a value; 0: as many as of a key."""

    @property
    def values(self) -> int:
        """Components of a value."""
        return self.value_dim or self.head_dim


class Norm(NamedTuple):
    """A normalisation. rms: x / sqrt(mean(x^2) + eps) * weight; layer: (x - mean) / sqrt(variance + eps) * weight."""

    weight: Tensor
    """[features], in the model's dtype, or float32 where the family's formula needs its bits."""
    eps: float
    bias: Tensor | None = None
    kind: str = "rms"
    """`rms` or `layer`."""


class HeadNorms(NamedTuple):
    """Normalisation of each query and key head before the rotation; weights are [head_dim] or [heads, head_dim]."""

    query: Norm
    key: Norm


class Rotation(NamedTuple):
    """Tables of the rotary embedding, float32. A token uses the line that `Batch.rotary_at` names."""

    cos: Tensor
    """[lines, dim / 2]; dim 0: nothing is rotated."""
    sin: Tensor
    query_scale: Tensor | None = None
    """[lines]: factor on the rotated query (Qwen's log n attention)."""


class LayerKV(NamedTuple):
    """Keys and values of one layer. With scales (int8 and fp8) an element stands for itself times its scale."""

    keys: Tensor
    """[slots + 1, kv_heads, head_dim]"""
    values: Tensor
    """[slots + 1, kv_heads, value_dim]"""
    key_scales: Tensor | None = None
    """float16 [slots + 1, kv_heads]: of each token and head."""
    value_scales: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """How a mixture of experts picks."""

    top_k: int
    renormalise: bool
    """The chosen weights are divided by their sum."""
    scale: float = 1.0
    """Factor on the weights at last."""
    groups: int = 1
    """Experts stand in this many groups of equal size; only the `top_groups` with the largest maximum take part."""
    top_groups: int = 1


@dataclass(frozen=True, slots=True)
class OpTable:
    """One callable per op. `name` says whose they are, `exact_rows` whether a token's result is bitwise independent
    of the other tokens of the step."""

    name: str
    exact_rows: bool

    prepare_linear: Callable[[Tensor, Tensor | None], Prepared]
    """(weight [n, k], bias [n] or None) -> what `linear` takes. May copy; the caller drops the originals."""
    prepare_quantised: Callable[[QuantisedWeight, Tensor | None, dtype], Prepared]
    """As `prepare_linear` for a weight that was quantised; the dtype is that of activations. May expand it."""
    linear: Callable[[Tensor, Prepared], Tensor]
    """(x [tokens, k]) -> x @ weight.T + bias, [tokens, n] in x's dtype."""
    linear_float: Callable[[Tensor, Prepared], Tensor]
    """As `linear`, but the result is float32 and not rounded to x's dtype: for logits."""
    embedding: Callable[[Tensor, Tensor | Prepared], Tensor]
    """(ids [tokens], table [vocab, hidden], or what `prepare_quantised` made of it) -> [tokens, hidden]."""
    norm: Callable[[Tensor, Norm], Tensor]
    """(x, norm) -> x normalised, times the weight, plus the bias."""
    add_norm: Callable[[Tensor, Tensor, Norm], Tensor]
    """(x, residual, norm): residual += x in place, rounded to its dtype; returns norm(residual)."""
    rotary_kv_write: Callable[[Tensor, Rotation, LayerKV, Batch, HeadLayout, HeadNorms | None], Tensor]
    """(qkv, rotation, kv, batch, layout, head norms): normalises and rotates queries and keys, writes keys and values
    of the new tokens to their slots (rounded to nearest where they are stored in 8 bits), returns the queries
    [tokens, heads * head_dim]. It may use qkv's memory for the result."""
    attention: Callable[[Tensor, LayerKV, Batch, HeadLayout], Tensor]
    """(q [tokens, heads * head_dim], kv, batch, layout): causal attention of each new token over its sequence's
    slots, [tokens, heads * value_dim]."""
    rotate: Callable[[Tensor, Rotation, Batch, HeadLayout], Tensor]
    """(x [tokens, heads, dim], rotation, batch, layout) -> the same rotated; `layout` says which components pair."""
    kv_write: Callable[[Tensor, Tensor, LayerKV, Batch], None]
    """(keys [tokens, kv_heads, head_dim], values [tokens, kv_heads, value_dim] or a view of the keys, kv, batch):
    writes them as they are to the new tokens' slots. Where `kv.values` shares `kv.keys`' memory, only keys count."""
    gated: Callable[[Tensor, str], Tensor]
    """(gate and up side by side [tokens, 2 * n], activation) -> activation(gate) * up, [tokens, n]. Activations are
    `silu`, `gelu` (by erf), `gelu_tanh` and `relu`."""
    activate: Callable[[Tensor, str], Tensor]
    """(x, activation) -> activation(x)."""
    route: Callable[[Tensor, Routing], tuple[Tensor, Tensor]]
    """(float32 logits [tokens, experts], routing) -> softmax weights float32 [tokens, top_k] and experts' numbers
    int32 [tokens, top_k], the likeliest first."""
    prepare_experts: Callable[[ExpertWeights, ExpertWeights], Prepared]
    """(gate_up [experts, 2 * n, k], down [experts, k, n]) -> what `experts` takes."""
    experts: Callable[[Tensor, Prepared, Tensor, Tensor, str], Tensor]
    """(x [tokens, k], prepared, weights, numbers, activation): the weighted sum of each token's experts, each
    down(activation(gate x) * up x), [tokens, k]."""
    block_types: frozenset[int] = frozenset()
    """ggml's numbers of the types whose blocks `prepare_quantised` keeps, for activations in bfloat16."""
