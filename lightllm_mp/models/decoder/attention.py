"""The attention of a layer: fused QKV projection, rotary embedding, KV write, attention, output projection."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout, HeadNorms, LayerKV, OpTable, Prepared
from lightllm_mp.models.checkpoint.assembly import ModelWeights
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.decoder.norms import read_head_norms
from lightllm_mp.models.decoder.rotary import RotaryTable
from lightllm_mp.models.parallel.group import RankGroup
from lightllm_mp.models.parallel.sharding import Shard
from lightllm_mp.models.spec import ModelSpec


def head_layout(spec: ModelSpec, layer: int, shard: Shard, sinks: Tensor | None = None) -> HeadLayout:
    slopes = alibi_slopes(shard.all_heads or spec.heads, shard.first_head, spec.heads) if spec.alibi else ()
    return HeadLayout(
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        scale=spec.head_dim**-0.5 if spec.attention_scale is None else spec.attention_scale,
        causal=spec.causal,
        window=spec.window_of(layer),
        softcap=spec.score_softcap,
        alibi=slopes,
        image_spans=spec.image_span > 0 and not (spec.image_span_local and layer in spec.global_layers),
        value_norm=spec.value_norm,
        interleaved=spec.rope is not None and spec.rope.interleaved,
        sinks=sinks,
    )


@dataclass(slots=True)
class JointHeads:
    """Gives norms of heads the mean squares of all queries, and of all keys, of the group's ranks."""

    ops: OpTable
    group: RankGroup
    counts: Tensor
    """float32 [2, 1]: elements of a token's queries and keys on all ranks, where a key may be on several."""

    def norms(self, qkv: Tensor, layout: HeadLayout, norms: HeadNorms) -> HeadNorms:
        means = self.group.sum(self.ops.head_squares(qkv, layout)) / self.counts
        return HeadNorms(*(norm._replace(mean_squares=mean) for norm, mean in zip(norms, means, strict=True)))


@dataclass(slots=True)
class Attention:
    """Self-attention of one layer over the KV pool."""

    ops: OpTable
    layer: int
    layout: HeadLayout
    projected: HeadLayout
    """Of a row of `qkv`: without keys and values where those of another layer are read."""
    rotary: RotaryTable
    norms: HeadNorms | None
    qkv: Prepared
    gate: Prepared | None
    o: Prepared
    joint: JointHeads | None = None

    def forward(self, x: Tensor, batch: Batch, kv: KVPool, rows: Tensor | None = None) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden], or only its `rows`; writes the new tokens' keys and values, if any."""
        layer = kv.layers[self.layer]
        qkv = self.ops.linear(x, self.qkv)
        rotation = batch.rotation or self.rotary.rotation
        norms = self.norms
        if self.joint is not None and norms is not None:
            norms = self.joint.norms(qkv, self.layout, norms)
        into = layer if self.projected.kv_heads else _without_heads(layer)
        q = self.ops.rotary_kv_write(qkv, rotation, into, batch, self.projected, norms)
        out = self.ops.attention(q, layer, batch, self.layout)
        if rows is not None:
            x, out = x[rows], out[rows]
        if self.gate is not None:
            out = self.ops.sigmoid_gated(out, self.ops.linear(x, self.gate))
        return self.ops.linear(out, self.o)


def _without_heads(kv: LayerKV) -> LayerKV:
    """A part of the pool that nothing is written to."""
    return LayerKV(*(None if part is None else part[:, :0] for part in kv))


def read_attention(
    weights: ModelWeights,
    layer: int,
    spec: ModelSpec,
    ops: OpTable,
    rotary: RotaryTable,
    shard: Shard,
    group: RankGroup,
) -> Attention:
    at, own = f"layers.{layer}.", spec.kv_source(layer) == layer
    spec = spec.at(layer)
    layout = head_layout(spec, layer, shard, weights.tensor(at + "sinks").float() if spec.sinks else None)
    return Attention(
        ops,
        layer,
        layout,
        layout if own else replace(layout, kv_heads=0),
        rotary,
        read_head_norms(weights, at, spec, keys=own),
        weights.linear(at + "qkv"),
        weights.linear(at + "q_gate") if spec.attention_gate else None,
        weights.linear(at + "o"),
        _joint_heads(spec, ops, rotary, shard, group) if spec.joint_head_norm else None,
    )


def _joint_heads(spec: ModelSpec, ops: OpTable, rotary: RotaryTable, shard: Shard, group: RankGroup) -> JointHeads:
    heads = (shard.all_heads or spec.heads, shard.all_kv_heads or spec.kv_heads)
    counts = torch.tensor(heads, dtype=torch.float32, device=rotary.device) * spec.head_dim
    return JointHeads(ops, group, counts.unsqueeze(1))


def alibi_slopes(all_heads: int, first: int, count: int) -> tuple[float, ...]:
    """Slopes of `count` query heads from number `first`, of a model with `all_heads`; 0 for heads that pad the model.

    Linear biases of attention: Press et al., arXiv 2108.12409.
    Where `all_heads` is not a power of two, the slopes of the power below come first, then every other slope of the
    power above, as in BLOOM and Baichuan.
    """
    power = 1 << (all_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    slopes += [2.0 ** (-4.0 * i / power) for i in range(1, 2 * (all_heads - power), 2)]
    slopes += [0.0] * (first + count - all_heads)
    return tuple(slopes[first : first + count])
