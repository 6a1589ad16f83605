"""The op table: every operation of a decoder, as callables with a fixed contract.

`select` chooses a table once per process. The functions in `kernels/reference` define each op; faster ones agree with
them within rounding. Activations are [tokens, features], contiguous, in the model's dtype; an op computes in float32
and rounds once at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, dtype

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.quantised import QuantisedWeight

Prepared = Any
"""A weight in the form that the same table's `linear` or `experts` takes."""


ExpertWeights = Any
"""Tensor or `ScaledWeight` [experts, n, k]; with `block_types` or `expert_block_types` it may be a tuple of a
`BlockWeight` or `GroupedWeight` for each expert."""


class ExpertBiases(NamedTuple):
    """What experts add to their products, in any floating type; None: nothing."""

    gate_up: Tensor | None = None
    """[experts, 2 * n]"""
    down: Tensor | None = None
    """[experts, k]"""


class PrepareExperts(Protocol):
    """(gate_up [experts, 2 * n, k], down [experts, k, n], biases) -> input of `OpTable.experts`."""

    def __call__(self, gate_up: ExpertWeights, down: ExpertWeights, biases: ExpertBiases = ..., /) -> Prepared: ...


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Layout of a row of the fused projection: `heads` queries, then `kv_heads` keys, then `kv_heads` values."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    """Factor on the scores before the softmax."""
    causal: bool = True
    """A query sees itself and keys before it; else all keys of its sequence, and there is no window or bias."""
    window: int = 0
    """A query sees itself and the `window - 1` keys before it; 0: all keys before it."""
    softcap: float = 0.0
    """Scaled scores become cap * tanh(score / cap); 0: off."""
    alibi: tuple[float, ...] = ()
    """A slope per query head: slope * (key position - query position) is added to the scaled score."""
    image_spans: bool = False
    """A query also sees the keys up to `Batch.visible`, where the step has that."""
    value_norm: bool = False
    """With head norms, values are divided by their root mean square, with the epsilon of the keys and no weights."""
    interleaved: bool = False
    """Rotary pairs are (2i, 2i + 1) and not (i, i + dim / 2)."""
    value_dim: int = 0
    """Components of a value; 0: `head_dim`."""
    sinks: Tensor | None = field(default=None, compare=False, repr=False)
    """float32 [heads]: a logit of each query head that takes part in the softmax beside the scores and has no value
    (gpt-oss; Xiao et al., arXiv 2309.17453)."""

    @property
    def values(self) -> int:
        """Components of a value."""
        return self.value_dim or self.head_dim


class Norm(NamedTuple):
    """A normalisation. rms: x / sqrt(mean(x^2) + eps) * weight; layer: (x - mean) / sqrt(variance + eps) * weight."""

    weight: Tensor
    """[features], in the model's dtype, or float32 where the family's formula needs the precision."""
    eps: float
    bias: Tensor | None = None
    kind: str = "rms"
    """`rms` or `layer`."""
    mean_squares: Tensor | None = None
    """rms: float32 [tokens], means of x^2 over more than the row, which take the place of the row's own."""


class HeadNorms(NamedTuple):
    """Normalisation of each query and key head before the rotation; weights are [head_dim] or [heads, head_dim], the
    latter where `mean_squares` are those of all heads."""

    query: Norm
    key: Norm


class Rotation(NamedTuple):
    """Tables of the rotary embedding, float32. A token uses the row `Batch.rotary_at`."""

    cos: Tensor
    """[rows, dim / 2]; dim 0: nothing is rotated."""
    sin: Tensor
    query_scale: Tensor | None = None
    """[rows]: factor on the rotated query (Qwen's log n attention)."""


class LayerKV(NamedTuple):
    """Keys and values of one layer. With scales (int8 and fp8) the value of an element is element * scale."""

    keys: Tensor
    """[slots + 1, kv_heads, head_dim]"""
    values: Tensor
    """[slots + 1, kv_heads, value_dim]"""
    key_scales: Tensor | None = None
    """float16 [slots + 1, kv_heads], one per token and head."""
    value_scales: Tensor | None = None


class DeltaState(NamedTuple):
    """States of one layer of linear attention, by place."""

    recurrent: Tensor
    """float32 [places, value heads, key_dim, value_dim]"""
    conv: Tensor
    """[places, taps - 1, channels]: the last inputs of the convolution, the oldest first."""


class DeltaWeights(NamedTuple):
    """What the gated delta rule takes besides its projections."""

    conv: Tensor
    """[taps, channels], in the model's dtype; the last tap is of the token itself."""
    decay: Tensor
    """float32 [value heads]: exp(A_log)"""
    dt_bias: Tensor
    """float32 [value heads]"""
    norm: Tensor
    """float32 [value_dim]: factors of the norm on each head's output."""


@dataclass(frozen=True, slots=True)
class DeltaLayout:
    """Layout of a row of the projection: `key_heads` queries, `key_heads` keys and `value_heads` values, which are the
    channels of the convolution, then the gates of `value_heads` outputs. Value head j takes the query and the key of
    head j // (value_heads / key_heads)."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    norm_eps: float

    @property
    def key_size(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        return 2 * self.key_size + self.value_size


@dataclass(frozen=True, slots=True)
class Routing:
    """How a mixture of experts routes a token."""

    top_k: int
    renormalise: bool
    """The chosen weights are divided by their sum."""
    scale: float = 1.0
    """Factor on the weights after that."""
    groups: int = 1
    """Number of equal groups of experts; only the `top_groups` best take part."""
    top_groups: int = 1
    group_best: int = 1
    """A group is ranked by the sum of its 1 (DeepSeek-V2) or 2 (DeepSeek-V3) best experts."""
    sigmoid: bool = False
    """An expert's weight is the sigmoid of its logit, else the softmax of all logits."""
    correction: Tensor | None = field(default=None, compare=False)
    """float32 [experts], added to the weights for the choice alone (DeepSeek-V3, arXiv 2408.15664)."""


@dataclass(frozen=True, slots=True)
class OpTable:
    """One callable per op. `name` names the backend. `exact_rows`: a token's result is bitwise independent of the other
    tokens of the step."""

    name: str
    exact_rows: bool

    prepare_linear: Callable[[Tensor, Tensor | None], Prepared]
    """(weight [n, k], bias [n] or None) -> input of `linear`. May copy; the caller drops the originals."""
    prepare_quantised: Callable[[QuantisedWeight, Tensor | None, dtype], Prepared]
    """As `prepare_linear` for a quantised weight and activations of the dtype. May expand it."""
    linear: Callable[[Tensor, Prepared], Tensor]
    """(x [tokens, k]) -> x @ weight.T + bias, [tokens, n] in x's dtype."""
    linear_float: Callable[[Tensor, Prepared], Tensor]
    """As `linear`, with a float32 result that is not rounded to x's dtype: for logits."""
    embedding: Callable[[Tensor, Tensor | Prepared], Tensor]
    """(ids [tokens], table [vocab, hidden] or its result of `prepare_quantised`) -> [tokens, hidden]."""
    norm: Callable[[Tensor, Norm], Tensor]
    """(x, norm) -> normalised x * weight + bias."""
    add_norm: Callable[[Tensor, Tensor, Norm], Tensor]
    """(x, residual, norm): residual += x in place, rounded to its dtype; returns norm(residual)."""
    head_squares: Callable[[Tensor, HeadLayout], Tensor]
    """(qkv, layout) -> float32 [2, tokens]: the sums of the squares of all queries, and of all keys."""
    rotary_kv_write: Callable[[Tensor, Rotation, LayerKV, Batch, HeadLayout, HeadNorms | None], Tensor]
    """(qkv, rotation, kv, batch, layout, head norms): normalises and rotates queries and keys, writes keys and values
    of the new tokens to their slots (rounded to nearest if stored in 8 bits), returns the queries
    [tokens, heads * head_dim], possibly in qkv's memory."""
    attention: Callable[[Tensor, LayerKV, Batch, HeadLayout], Tensor]
    """(q [tokens, heads * head_dim], kv, batch, layout): attention of each new token over its sequence's slots,
    [tokens, heads * value_dim]."""
    full_attention: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(q [sequences, queries, heads, dim], k and v [sequences, keys, heads, dim], possibly views of one projection):
    every query sees every key of its sequence, scores are scaled by dim^-0.5; -> [sequences, queries, heads * dim]."""
    prepare_heads: Callable[[Tensor], Prepared]
    """(weight [heads, n, k]) -> input of `linear_heads`."""
    linear_heads: Callable[[Tensor, Prepared], Tensor]
    """(x [tokens, heads, k], possibly a view) -> each head's x @ weight.T, [tokens, heads, n], possibly a view."""
    rotate: Callable[[Tensor, Rotation, Batch, HeadLayout], Tensor]
    """(x [tokens, heads, dim], rotation, batch, layout) -> x rotated; `layout` says which components form a pair."""
    kv_write: Callable[[Tensor, Tensor, LayerKV, Batch], None]
    """(keys [tokens, kv_heads, head_dim], values [tokens, kv_heads, value_dim] or a view of the keys, kv, batch):
    writes them unchanged to the new tokens' slots. Where `kv.values` shares `kv.keys`' memory, only keys are
    written."""
    gated_delta: Callable[[Tensor, Tensor, DeltaWeights, DeltaState, Batch, DeltaLayout], Tensor]
    """(projected [tokens, channels + value_heads * value_dim], float32 [tokens, 2 * value_heads]: first all b, then all
    a, weights, state, batch, layout) -> [tokens, value_heads * value_dim]: the causal convolution, the gated delta rule
    and the gated norm of each output, as `kernels/reference/gated_delta.py` defines them. Reads and writes the states
    of the places `batch.rows`, and writes those of `batch.state_saves`."""
    sigmoid_gated: Callable[[Tensor, Tensor], Tensor]
    """(x [tokens, n], gate [tokens, n] or [tokens, 1], in x's dtype or float32) -> x * sigmoid(gate)."""
    gated: Callable[[Tensor, str], Tensor]
    """(gate beside up [tokens, 2 * n], activation) -> activation(gate) * up, [tokens, n]. Activations are
    `silu`, `gelu` (by erf), `gelu_tanh`, `quick_gelu` (x * sigmoid(1.702 x)) and `relu`; and `swiglu_oai` (gpt-oss),
    which is quick_gelu(min(gate, 7)) * (clamp(up, -7, 7) + 1)."""
    activate: Callable[[Tensor, str], Tensor]
    """(x, activation) -> activation(x)."""
    route: Callable[[Tensor, Routing], tuple[Tensor, Tensor]]
    """(float32 logits [tokens, experts], routing) -> weights float32 [tokens, top_k] and expert numbers int32
    [tokens, top_k], in descending order of weight plus correction."""
    prepare_experts: PrepareExperts
    experts: Callable[[Tensor, Prepared, Tensor, Tensor, str], Tensor]
    """(x [tokens, k], prepared, weights, numbers, activation) -> [tokens, k]: the weighted sum of each token's experts,
    each down(gated(gate x beside up x)), with their biases. A number outside 0 .. experts - 1 is an expert of another
    rank, and adds nothing."""
    block_types: frozenset[int] = frozenset()
    """ggml's numbers of the block types that `prepare_quantised` keeps packed, for activations in bfloat16."""
    expert_block_types: frozenset[int] = frozenset()
    """ggml's numbers of the block types that `prepare_experts` keeps packed besides, for activations of any type."""
