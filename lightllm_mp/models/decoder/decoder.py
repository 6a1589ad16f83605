"""The decoder of every model family; its `ModelSpec` says what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import Norm, OpTable
from lightllm_mp.models.checkpoint.assembly import ModelWeights
from lightllm_mp.models.decoder.attention import Attention, read_attention
from lightllm_mp.models.decoder.embedding import Embedding, ImageRows, OutputHead, visible_keys
from lightllm_mp.models.decoder.gated_delta import GatedDelta, read_gated_delta
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.decoder.latent_attention import LatentAttention, read_latent_attention
from lightllm_mp.models.decoder.mlp import GatedMLP, PlainMLP, read_mlp
from lightllm_mp.models.decoder.moe import Mixture, MixtureBesideMLP, read_mixture, read_mixture_beside
from lightllm_mp.models.decoder.norms import read_norm
from lightllm_mp.models.decoder.per_layer import LayerEnd, PerLayerInputs, read_layer_end
from lightllm_mp.models.decoder.pooling import PoolingHead
from lightllm_mp.models.decoder.rotary import rotary_tables
from lightllm_mp.models.parallel.group import RankGroup, SingleRank
from lightllm_mp.models.parallel.sharding import Shard
from lightllm_mp.models.spec import ModelSpec


@dataclass(slots=True)
class DecoderLayer:
    """One transformer block. Each half has a norm before it and, where `*_out_norm` is given, one after it."""

    input_norm: Norm
    attention: Attention | LatentAttention | GatedDelta
    attention_out_norm: Norm | None
    post_norm: Norm | None
    """None: both halves take the same normalised input."""
    mlp: GatedMLP | PlainMLP | Mixture
    mlp_out_norm: Norm | None
    end: LayerEnd | None
    beside: MixtureBesideMLP | None


class Decoder:
    """A loaded model, or one rank's part of it. It holds weights and no request state; the caller owns the KV pool.

    `spec` and `shard` say what this rank holds (see `Shard`); `group` connects it to the other ranks.
    """

    def __init__(
        self,
        spec: ModelSpec,
        ops: OpTable,
        weights: ModelWeights,
        *,
        device: torch.device | str,
        group: RankGroup | None = None,
        shard: Shard | None = None,
    ) -> None:
        self.spec = spec
        self._dtype = weights.dtype
        self.ops = ops
        self.group: RankGroup = group or SingleRank()
        self._shard = shard or Shard()
        self.rotary, self._local_rotary = rotary_tables(spec, device)
        self.embedding = Embedding(weights, spec, ops, self.group, self._shard)
        self._per_layer = PerLayerInputs(weights, spec, ops) if spec.per_layer is not None else None
        self.norm = read_norm(weights, "norm", spec)
        self.head = OutputHead(weights, spec, ops, self.group) if spec.pooling is None else None
        self._pooling = PoolingHead(weights, spec.pooling, ops) if spec.pooling is not None else None
        self.layers = [self._layer(i, weights) for i in range(spec.layers)]
        self._windowed = [spec.window_of(i) > 0 for i in range(spec.layers)]
        self.weight_bytes = weights.nbytes  # behind the layers: it is known then what their experts take

    def _layer(self, i: int, weights: ModelWeights) -> DecoderLayer:
        at, spec = f"layers.{i}.", self.spec
        return DecoderLayer(
            input_norm=read_norm(weights, at + "input_norm", spec),
            attention=self._attention(i, weights),
            attention_out_norm=read_norm(weights, at + "attention_out_norm", spec) if spec.branch_norms else None,
            post_norm=None if spec.parallel else read_norm(weights, at + "post_norm", spec),
            mlp=self._mlp(i, weights),
            mlp_out_norm=read_norm(weights, at + "mlp_out_norm", spec) if spec.branch_norms else None,
            end=read_layer_end(weights, at, spec, self.ops),
            beside=self._beside(at, weights),
        )

    def _attention(self, i: int, weights: ModelWeights) -> Attention | LatentAttention | GatedDelta:
        if i in self.spec.linear_layers:
            return read_gated_delta(weights, i, self.spec, self.ops)
        rotary = self.rotary if i in self.spec.global_layers else self._local_rotary
        if self.spec.mla is not None:
            return read_latent_attention(weights, i, self.spec, self.ops, rotary)
        return read_attention(weights, i, self.spec, self.ops, rotary, self._shard, self.group)

    def _mlp(self, i: int, weights: ModelWeights) -> GatedMLP | PlainMLP | Mixture:
        moe, at = self.spec.moe, f"layers.{i}."
        if moe is not None and not moe.beside and i not in moe.dense_layers:
            return read_mixture(weights, at, self.spec, self.ops, self._shard)
        return read_mlp(weights, at, self.spec, self.ops)

    def _beside(self, at: str, weights: ModelWeights) -> MixtureBesideMLP | None:
        if self.spec.moe is None or not self.spec.moe.beside:
            return None
        return read_mixture_beside(weights, at, self.spec, self.ops, self._shard, self.group)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def reserve(self, positions: int) -> None:
        """Grows the rotary tables to this many positions. Steps within them change no tensor of the model, so captured
        CUDA graphs stay valid."""
        self.rotary.reserve(positions)
        self._local_rotary.reserve(positions)

    @torch.inference_mode()
    def forward(
        self, ids: Tensor, batch: Batch, kv: KVPool, images: Sequence[ImageRows] = (), *, ends_only: bool = False
    ) -> Tensor:
        """Runs the new tokens `ids` [tokens] (int32 or int64) and writes their keys and values to `kv`. `images`
        replace the embeddings of some tokens.

        Returns the hidden states [tokens, hidden] after the final norm, in the model's dtype. With `ends_only` these
        are of each sequence's last token, [sequences, hidden], and the last layer computes no others.
        """
        ops = self.ops
        self.reserve(batch.max_context)
        if batch.rotary_at.dim() > 1:
            batch = self.rotary.by_sections(batch)
        if self.spec.image_span and images:
            batch = replace(batch, visible=visible_keys(batch, images))
        near = batch.in_windows()
        residual = self.embedding.forward(ids, batch, images)
        of_layers = None if self._per_layer is None else self._per_layer.forward(ids, residual)
        ends = batch.seq_start[1:].long() - 1 if ends_only and batch.tokens > batch.sequences else None
        branch: Tensor | None = None
        for i, layer in enumerate(self.layers):
            for image in images if 0 < i <= self.spec.deepstack else ():
                image.add_plane(i - 1, residual)
            x = (
                ops.norm(residual, layer.input_norm)
                if branch is None
                else self._add(branch, residual, layer.input_norm)
            )
            residual = x if self.spec.post_norm else residual
            rows = ends if layer is self.layers[-1] else None
            branch = layer.attention.forward(x, near if self._windowed[i] else batch, kv, rows)
            if rows is not None:
                x, residual = x[rows], residual[rows]
            if layer.post_norm is None:
                branch = branch.add_(layer.mlp.forward(x))
            else:
                x = self._add(self._whole(branch, layer.attention_out_norm), residual, layer.post_norm)
                residual = x if self.spec.post_norm else residual
                branch = layer.mlp.forward(x)
            if layer.beside is not None:
                assert layer.mlp_out_norm is not None
                branch = ops.norm(layer.beside.forward(self.group.sum(branch), residual), layer.mlp_out_norm)
            else:
                branch = self._whole(branch, layer.mlp_out_norm)
            if layer.end is not None:
                inputs = None if of_layers is None else of_layers[i] if rows is None else of_layers[i][rows]
                residual, branch = layer.end.forward(residual.add_(branch), inputs), None
        return ops.norm(residual, self.norm) if branch is None else self._add(branch, residual, self.norm)

    def _whole(self, branch: Tensor, norm: Norm | None) -> Tensor:
        """The output of attention or MLP: the sum of the ranks' parts, normalised where the model does so."""
        branch = self.group.sum(branch)
        return branch if norm is None else self.ops.norm(branch, norm)

    def _add(self, branch: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        if self.spec.residual_scale != 1.0:
            branch = branch.mul_(self.spec.residual_scale)
        return self.ops.add_norm(branch, residual, norm)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [n, vocab] of hidden states [n, hidden]."""
        assert self.head is not None, "a model of embeddings or scores has no logits"
        return self.head.logits(hidden)

    @torch.inference_mode()
    def pool(self, hidden: Tensor) -> Tensor:
        """Float32 [n, width]: the embeddings or scores of sequences with the taken hidden states [n, hidden]."""
        assert self._pooling is not None, "only a model of embeddings or scores pools"
        return self._pooling.rows(hidden)
