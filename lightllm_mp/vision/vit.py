"""The layers of a vision transformer, as the spec says: norms, attention over groups of sequences, MLP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightllm_mp.vision.layout import Group
from lightllm_mp.vision.spec import VisionSpec

Weights = Mapping[str, Tensor]
"""Parameters by target (see weights.py), in the tower's dtype on its device."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Which rows see each other. `rows` [rows] is the order in which the groups stand, None for the rows' own order;
    `back` undoes it."""

    groups: Sequence[Group]
    rows: Tensor | None = None
    back: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rotation:
    """2-D rotary embedding: float32 [rows, 1, head_dim / 2]; the first half of the angles is of the patch's row."""

    cos: Tensor
    sin: Tensor


def project(x: Tensor, weights: Weights, target: str) -> Tensor:
    """x @ weight.T + bias, with the bias where the file has one."""
    return F.linear(x, weights[target], weights.get(target + ".bias"))


def normalise(x: Tensor, weights: Weights, target: str, eps: float) -> Tensor:
    """Layer norm where there is a bias, else RMS norm, computed in float32 and rounded before the weight."""
    weight, bias = weights[target], weights.get(target + ".bias")
    if bias is not None:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def attend(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    """Attention within each sequence: all [rows, heads, head_dim]."""
    if sequences.rows is not None:
        q, k, v = (x.index_select(0, sequences.rows) for x in (q, k, v))
    parts = [_attend_group(q, k, v, group) for group in sequences.groups]
    result = parts[0] if len(parts) == 1 else torch.cat(parts)
    return result if sequences.back is None else result.index_select(0, sequences.back)


def _attend_group(q: Tensor, k: Tensor, v: Tensor, group: Group) -> Tensor:
    rows = group.count * group.length
    cut = [x[group.start : group.start + rows].unflatten(0, (group.count, group.length)) for x in (q, k, v)]
    result = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in cut))
    return result.transpose(1, 2).reshape(rows, *q.shape[1:])


class VisionTransformer:
    """All layers. Rows are patches (and class tokens) of any number of pictures."""

    def __init__(self, spec: VisionSpec, weights: Weights) -> None:
        self.spec = spec
        self.weights = weights
        self._activation = ACTIVATIONS[spec.activation]

    def __call__(self, x: Tensor, whole: Sequences, windows: Sequences, rotation: Rotation | None = None) -> Tensor:
        """x [rows, width] -> the same after the last layer. `whole` has a sequence per picture."""
        for layer in range(self.spec.layers):
            full = not self.spec.window or layer in self.spec.full_layers
            x = self._layer(x, f"layers.{layer}.", whole if full else windows, rotation)
        return x

    def _layer(self, x: Tensor, at: str, sequences: Sequences, rotation: Rotation | None) -> Tensor:
        eps = self.spec.norm_eps
        x = x + self._attention(normalise(x, self.weights, at + "input_norm", eps), at, sequences, rotation)
        return x + self._mlp(normalise(x, self.weights, at + "post_norm", eps), at)

    def _attention(self, x: Tensor, at: str, sequences: Sequences, rotation: Rotation | None) -> Tensor:
        q, k, v = project(x, self.weights, at + "qkv").unflatten(1, (3, self.spec.heads, -1)).unbind(1)
        if rotation is not None:
            q, k = _rotated(q, rotation), _rotated(k, rotation)
        return project(attend(q, k, v, sequences).flatten(1), self.weights, at + "o")

    def _mlp(self, x: Tensor, at: str) -> Tensor:
        if not self.spec.gated:
            return project(self._activation(project(x, self.weights, at + "up")), self.weights, at + "down")
        gate, up = project(x, self.weights, at + "gate_up").chunk(2, dim=1)
        return project(self._activation(gate) * up, self.weights, at + "down")


def _rotated(x: Tensor, rotation: Rotation) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    turned = (first * rotation.cos - second * rotation.sin, second * rotation.cos + first * rotation.sin)
    return torch.cat(turned, dim=-1).to(x.dtype)


def rotation(spec: VisionSpec, coordinates: Tensor) -> Rotation:
    """Angles of patches at `coordinates` [2, rows] (row, column): each turns half of the pairs of a head."""
    half = spec.head_dim // 2
    exponents = torch.arange(0, half, 2, device=coordinates.device).float() / half
    angles = coordinates.float()[:, :, None] * spec.rope_theta**-exponents
    both = torch.cat([angles[0], angles[1]], dim=-1).unsqueeze(1)
    return Rotation(both.cos(), both.sin())
