"""One decoder for every family: what it computes follows from its `ModelSpec`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightllm_mp.kernels.table import Norm, OpTable
from lightllm_mp.models.assembly import Weights
from lightllm_mp.models.attention import Attention, head_layout
from lightllm_mp.models.batch import Batch, KVPool
from lightllm_mp.models.mlp import GatedMLP
from lightllm_mp.models.rotary import RotaryTable
from lightllm_mp.models.spec import ModelSpec


@dataclass(slots=True)
class Layer:
    """One transformer block, normalised before each half."""

    input_norm: Norm
    attention: Attention
    post_norm: Norm
    mlp: GatedMLP


class Decoder:
    """A loaded model. It holds weights and no request state; the caller owns the KV pool."""

    def __init__(self, spec: ModelSpec, ops: OpTable, weights: Weights, *, device: torch.device | str) -> None:
        self.spec = spec
        self.weight_bytes = weights.nbytes
        self.ops = ops
        assert spec.rope is not None
        self.rotary = RotaryTable(spec.rope, device=device)
        self.embed = weights.tensor("embed")
        self.norm = Norm(weights.tensor("norm"), spec.norm_eps)
        self.head = weights.linear("embed" if spec.tied else "head")
        self.layers = [self._layer(i, weights) for i in range(spec.layers)]

    def _layer(self, i: int, weights: Weights) -> Layer:
        at = f"layers.{i}."
        return Layer(
            input_norm=Norm(weights.tensor(at + "input_norm"), self.spec.norm_eps),
            attention=Attention(
                self.ops,
                i,
                head_layout(self.spec),
                self.rotary,
                weights.linear(at + "qkv"),
                weights.linear(at + "o"),
            ),
            post_norm=Norm(weights.tensor(at + "post_norm"), self.spec.norm_eps),
            mlp=GatedMLP(self.ops, weights.linear(at + "gate_up"), weights.linear(at + "down")),
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.dtype

    @torch.inference_mode()
    def forward(self, ids: Tensor, batch: Batch, kv: KVPool) -> Tensor:
        """Runs the new tokens `ids` [tokens] (int32 or int64) and writes their keys and values to `kv`.

        Returns their hidden states [tokens, hidden] after the final norm, in the model's dtype.
        """
        ops = self.ops
        self.rotary.reserve(batch.max_context)
        residual = ops.embedding(ids, self.embed)
        branch: Tensor | None = None
        for layer in self.layers:
            if branch is None:
                x = ops.norm(residual, layer.input_norm)
            else:
                x = ops.add_norm(branch, residual, layer.input_norm)
            branch = layer.attention.forward(x, batch, kv)
            x = ops.add_norm(branch, residual, layer.post_norm)
            branch = layer.mlp.forward(x)
        assert branch is not None
        return ops.add_norm(branch, residual, self.norm)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 scores [n, vocab] of the hidden states [n, hidden] asked for."""
        return self.ops.linear_float(hidden, self.head)
