"""The layers of Gemma 4's vision tower: norms around each half and on all heads, linear layers between bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightllm_mp.kernels.table import Norm, OpTable, Prepared
from lightllm_mp.vision.spec import VisionSpec
from lightllm_mp.vision.tower.parameters import TowerParameters
from lightllm_mp.vision.tower.vit import PatchRotation, Sequences, attend, rotate_heads

BOUNDS = ("input_min", "input_max", "output_min", "output_max")


@dataclass(slots=True)
class ClippedLinear:
    """A projection whose inputs and outputs are clamped, where the tower has bounds."""

    ops: OpTable
    weight: Prepared
    bounds: tuple[float, ...] | None
    """Least and largest input, least and largest output."""

    def __call__(self, x: Tensor) -> Tensor:
        if self.bounds is None:
            return self.ops.linear(x, self.weight)
        low, high, least, most = self.bounds
        return self.ops.linear(x.clamp(low, high), self.weight).clamp_(least, most)


@dataclass(slots=True)
class ClippedVitLayer:
    """One block. Each half has a norm before it and one after it."""

    input_norm: Norm
    q: ClippedLinear
    k: ClippedLinear
    v: ClippedLinear
    q_norm: Norm
    k_norm: Norm
    v_norm: Norm
    o: ClippedLinear
    attention_out_norm: Norm
    post_norm: Norm
    gate: ClippedLinear
    up: ClippedLinear
    down: ClippedLinear
    mlp_out_norm: Norm


class ClippedVisionTransformer:
    """All layers. Rows are patches of any number of images."""

    def __init__(self, spec: VisionSpec, parameters: TowerParameters) -> None:
        self.spec = spec
        self.ops = parameters.ops
        self._layers = [self._read(parameters, f"layers.{layer}.") for layer in range(spec.layers)]

    def _read(self, parameters: TowerParameters, at: str) -> ClippedVitLayer:
        eps, dim = self.spec.norm_eps, self.spec.head_dim

        def linear(name: str) -> ClippedLinear:
            bounds = None
            if self.spec.clipped:
                bounds = tuple(parameters.tensor(f"{at}{name}.{bound}").item() for bound in BOUNDS)
            return ClippedLinear(self.ops, parameters.linear(at + name), bounds)

        q_norm, k_norm = (parameters.norm(at + name, eps) for name in ("q_norm", "k_norm"))
        # The op scales scores by dim ** -0.5; this model does not scale them.
        scaled = q_norm._replace(weight=q_norm.weight.float() * dim**0.5)
        ones = Norm(parameters.ones(dim), eps)
        q, k, v, o, gate, up, down = map(linear, ("q", "k", "v", "o", "gate", "up", "down"))
        norms = ("input_norm", "attention_out_norm", "post_norm", "mlp_out_norm")
        before, behind, second, last = (parameters.norm(at + name, eps) for name in norms)
        return ClippedVitLayer(before, q, k, v, scaled, k_norm, ones, o, behind, second, gate, up, down, last)

    def __call__(
        self,
        x: Tensor,
        whole: Sequences,
        windows: Sequences,
        rotation: PatchRotation | None = None,
        merge: Sequence[Callable[[Tensor], Tensor]] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """As `VisionTransformer`: x [rows, width] -> the output of the last layer, in x's memory."""
        assert rotation is not None
        assert not merge
        ops = self.ops
        for layer in self._layers:
            branch = self._attention(ops.norm(x, layer.input_norm), layer, whole, rotation)
            x = x.add_(ops.norm(branch, layer.attention_out_norm))
            inner = ops.norm(x, layer.post_norm)
            gated = ops.activate(layer.gate(inner), self.spec.activation).mul_(layer.up(inner))
            x = x.add_(ops.norm(layer.down(gated), layer.mlp_out_norm))
        return x, []

    def _attention(self, x: Tensor, layer: ClippedVitLayer, whole: Sequences, rotation: PatchRotation) -> Tensor:
        heads = self.spec.heads
        pairs = ((layer.q, layer.q_norm), (layer.k, layer.k_norm), (layer.v, layer.v_norm))
        parts = [self.ops.norm(linear(x).unflatten(1, (heads, -1)).flatten(0, 1), norm) for linear, norm in pairs]
        qkv = torch.stack([part.unflatten(0, (-1, heads)) for part in parts], dim=1)
        rotate_heads(qkv[:, :2], rotation)
        return layer.o(attend(self.ops, qkv, whole))
