"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), with the up-projections absorbed.

A token's entry in the KV pool is its normalised latent and its rotated key part, shared by all heads. Keys and values
are never expanded: queries are projected into the latent space, attention runs there, and its output is projected out
of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout, Norm, OpTable, Prepared
from lightllm_mp.models.checkpoint.assembly import ModelWeights
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.decoder.rotary import RotaryTable
from lightllm_mp.models.spec import MlaSpec, ModelSpec

LATENT_EPS = 1e-6
"""Epsilon of the norms inside, which `norm_eps` of the configuration does not set."""


@dataclass(slots=True)
class LatentAttention:
    """Self-attention of one layer over a pool of latents."""

    ops: OpTable
    layer: int
    mla: MlaSpec
    layout: HeadLayout
    rotary: RotaryTable
    q_a: tuple[Prepared, Norm] | None
    q: Prepared
    kv_a: Prepared
    kv_a_norm: Norm
    key_up: Prepared
    """For `linear_heads`: from nope_dim to kv_lora."""
    value_up: Prepared
    """From kv_lora to value_dim."""
    o: Prepared

    def forward(self, x: Tensor, batch: Batch, kv: KVPool, rows: Tensor | None = None) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden], or only its `rows`; writes the new tokens' latents."""
        layer = kv.layers[self.layer]
        keys = self._keys(x, batch)
        self.ops.kv_write(keys, keys[..., : self.mla.kv_lora], layer, batch)
        out = self.ops.attention(self._queries(x, batch), layer, batch, self.layout)
        out = out if rows is None else out[rows]
        values = self.ops.linear_heads(out.view(-1, self.layout.heads, self.mla.kv_lora), self.value_up)
        return self.ops.linear(values.reshape(out.shape[0], -1), self.o)

    def _keys(self, x: Tensor, batch: Batch) -> Tensor:
        """[tokens, 1, kv_lora + rope_dim]"""
        latent, turning = self.ops.linear(x, self.kv_a).split((self.mla.kv_lora, self.mla.rope_dim), -1)
        latent = self.ops.norm(latent.contiguous(), self.kv_a_norm)
        turned = self.ops.rotate(turning.unsqueeze(1).contiguous(), self.rotary.rotation, batch, self.layout)
        return torch.cat((latent.unsqueeze(1), turned), -1)

    def _queries(self, x: Tensor, batch: Batch) -> Tensor:
        """[tokens, heads * (kv_lora + rope_dim)]"""
        if self.q_a is not None:
            down, norm = self.q_a
            x = self.ops.norm(self.ops.linear(x, down), norm)
        heads = self.ops.linear(x, self.q).view(x.shape[0], self.layout.heads, -1)
        plain, turning = heads.split((self.mla.nope_dim, self.mla.rope_dim), -1)
        turned = self.ops.rotate(turning.contiguous(), self.rotary.rotation, batch, self.layout)
        absorbed = self.ops.linear_heads(plain, self.key_up)
        return torch.cat((absorbed, turned), -1).view(x.shape[0], -1)


def read_latent_attention(
    weights: ModelWeights, layer: int, spec: ModelSpec, ops: OpTable, rotary: RotaryTable
) -> LatentAttention:
    mla, at = spec.mla, f"layers.{layer}."
    assert mla is not None
    key_up, value_up = (
        weights.take(at + "kv_b")
        .view(spec.heads, mla.nope_dim + mla.value_dim, mla.kv_lora)
        .split((mla.nope_dim, mla.value_dim), 1)
    )
    return LatentAttention(
        ops,
        layer,
        mla,
        _layout(spec, mla),
        rotary,
        (weights.linear(at + "q_a"), _norm(weights, at + "q_a_norm")) if mla.q_lora else None,
        weights.linear(at + ("q_b" if mla.q_lora else "q")),
        weights.linear(at + "kv_a"),
        _norm(weights, at + "kv_a_norm"),
        ops.prepare_heads(key_up.transpose(1, 2)),
        ops.prepare_heads(value_up),
        weights.linear(at + "o"),
    )


def _norm(weights: ModelWeights, target: str) -> Norm:
    return Norm(weights.tensor(target), LATENT_EPS)


def _layout(spec: ModelSpec, mla: MlaSpec) -> HeadLayout:
    width = mla.nope_dim + mla.rope_dim
    return HeadLayout(
        heads=spec.heads,
        kv_heads=1,
        head_dim=mla.kv_lora + mla.rope_dim,
        scale=width**-0.5 if spec.attention_scale is None else spec.attention_scale,
        interleaved=spec.rope is not None and spec.rope.interleaved,
        value_dim=mla.kv_lora,
    )
