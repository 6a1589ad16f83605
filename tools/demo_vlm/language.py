"""The frozen language model: a Llama of a GGUF file in plain torch, through which gradients flow to its inputs.

Written apart from the engine, so that training and serving check each other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightllm_mp.models.decoder.rotary import inverse_frequencies
from lightllm_mp.models.model_config import gguf_model
from lightllm_mp.models.spec import ModelSpec


class FrozenLlama(nn.Module):
    """No parameter, only buffers of `dtype`. Embeddings in, hidden states out; `logits` is the head."""

    def __init__(self, path: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.spec, weights = _read(path, dtype, device)
        assert self.spec.rope is not None
        self.register_buffer("embed", weights["embed"])
        self.register_buffer("head", weights.get("head", weights["embed"]))
        self.register_buffer("norm", weights["norm"])
        self.register_buffer("frequencies", torch.as_tensor(inverse_frequencies(self.spec.rope)).to(device))
        self.layers = nn.ModuleList(
            Layer(self.spec, {name: weights[f"layers.{i}.{name}"] for name in Layer.WEIGHTS})
            for i in range(self.spec.layers)
        )

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """x [rows, length, hidden], positions [rows, length], mask bool [rows, 1, length, length], true where a query
        (first length) sees a key -> the same shape as x, after the last norm."""
        angles = positions[:, None, :, None].float() * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return F.rms_norm(x, x.shape[-1:], self.norm, self.spec.norm_eps)

    def logits(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocabulary]"""
        return F.linear(x, self.head)


class Layer(nn.Module):
    """Attention and MLP, each with its norm and residual."""

    WEIGHTS = ("input_norm", "qkv", "o", "post_norm", "gate_up", "down")

    def __init__(self, spec: ModelSpec, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.eps = spec.heads, spec.kv_heads, spec.head_dim, spec.norm_eps
        for name, weight in weights.items():
            self.register_buffer(name, weight)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """cos and sin float32 [rows, 1, length, head_dim / 2]"""
        normed = F.rms_norm(x, x.shape[-1:], self.input_norm, self.eps)
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in F.linear(normed, self.qkv).split(
                [n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads)], dim=-1
            )
        )
        shared = self.heads // self.kv_heads
        k, v = _rotated(k, cos, sin).repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        seen = F.scaled_dot_product_attention(_rotated(q, cos, sin), k, v, attn_mask=mask)
        x = x + F.linear(seen.transpose(1, 2).flatten(2), self.o)
        gate, up = F.linear(F.rms_norm(x, x.shape[-1:], self.post_norm, self.eps), self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def _read(path: Path, dtype: torch.dtype, device: torch.device | str) -> tuple[ModelSpec, dict[str, Tensor]]:
    family, spec, keys = gguf_model(path)
    assert family.gguf_weights is not None
    weights = {}
    for param in family.gguf_weights(spec, keys):
        parts = [(piece.transform or np.asarray)(keys.file.read(piece.name)) for piece in param.pieces]
        weights[param.target] = torch.from_numpy(np.concatenate(parts)).to(device, dtype)
    return spec, weights
