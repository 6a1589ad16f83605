"""The layers of a vision transformer: norms, attention over groups of sequences, MLP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightllm_mp.kernels.table import Norm, OpTable, Prepared
from lightllm_mp.vision.spec import VisionSpec
from lightllm_mp.vision.tower.parameters import TowerParameters
from lightllm_mp.vision.tower.patch_layout import SequenceRun


@dataclass(frozen=True, slots=True)
class Sequences:
    """The rows that attend to each other. `rows` [rows] is the order of the groups, None for the rows' own order;
    `back` undoes it."""

    groups: Sequence[SequenceRun]
    rows: Tensor | None = None
    back: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PatchRotation:
    """2-D rotary embedding: float32 [rows, 1, 1, head_dim / 2]; the first half of the angles is for the patch's row."""

    cos: Tensor
    sin: Tensor


def attend(ops: OpTable, qkv: Tensor, sequences: Sequences) -> Tensor:
    """Attention within each sequence: [rows, 3, heads, head_dim] -> [rows, heads * head_dim]."""
    if sequences.rows is not None:
        qkv = qkv.index_select(0, sequences.rows)
    parts = [_attend_group(ops, qkv, group) for group in sequences.groups]
    result = parts[0] if len(parts) == 1 else torch.cat(parts)
    return result if sequences.back is None else result.index_select(0, sequences.back)


def _attend_group(ops: OpTable, qkv: Tensor, group: SequenceRun) -> Tensor:
    rows = qkv[group.start : group.start + group.count * group.length]
    return ops.full_attention(*rows.unflatten(0, (group.count, group.length)).unbind(2)).flatten(0, 1)


@dataclass(slots=True)
class VitLayer:
    """One block with a norm before each half. `up` is gate and up where the MLP is gated."""

    input_norm: Norm
    qkv: Prepared
    o: Prepared
    post_norm: Norm
    up: Prepared
    down: Prepared


class VisionTransformer:
    """All layers. Rows are patches (and class tokens) of any number of images."""

    def __init__(self, spec: VisionSpec, parameters: TowerParameters) -> None:
        self.spec = spec
        self.ops = parameters.ops
        self._layers = [self._read(parameters, f"layers.{layer}.") for layer in range(spec.layers)]

    def _read(self, parameters: TowerParameters, at: str) -> VitLayer:
        eps = self.spec.norm_eps
        return VitLayer(
            input_norm=parameters.norm(at + "input_norm", eps),
            qkv=parameters.linear(at + "qkv"),
            o=parameters.linear(at + "o"),
            post_norm=parameters.norm(at + "post_norm", eps),
            up=parameters.linear(at + ("gate_up" if self.spec.gated else "up")),
            down=parameters.linear(at + "down"),
        )

    def __call__(
        self,
        x: Tensor,
        whole: Sequences,
        windows: Sequences,
        rotation: PatchRotation | None = None,
        merge: Sequence[Callable[[Tensor], Tensor]] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """x [rows, width] -> the output of the last layer, in x's memory, and what the i-th of `merge` makes of the
        output of layer `deepstack[i]`. `whole` has a sequence per frame."""
        spec, ops, residual = self.spec, self.ops, x
        branch: Tensor | None = None
        merged: list[Tensor] = []
        for i, layer in enumerate(self._layers):
            by = layer.input_norm
            x = ops.norm(residual, by) if branch is None else ops.add_norm(branch, residual, by)
            merged += [merge[n](residual) for n, tap in enumerate(spec.deepstack) if tap == i - 1]
            full = not spec.window or i in spec.full_layers
            branch = self._attention(x, layer, whole if full else windows, rotation)
            branch = self._mlp(ops.add_norm(branch, residual, layer.post_norm), layer)
        assert branch is not None
        residual.add_(branch)
        merged += [merge[n](residual) for n, tap in enumerate(spec.deepstack) if tap == spec.layers - 1]
        return residual, merged

    def _attention(self, x: Tensor, layer: VitLayer, sequences: Sequences, rotation: PatchRotation | None) -> Tensor:
        qkv = self.ops.linear(x, layer.qkv).unflatten(1, (3, self.spec.heads, -1))
        if rotation is not None:
            rotate_heads(qkv[:, :2], rotation)
        return self.ops.linear(attend(self.ops, qkv, sequences), layer.o)

    def _mlp(self, x: Tensor, layer: VitLayer) -> Tensor:
        between = self.ops.gated if self.spec.gated else self.ops.activate
        return self.ops.linear(between(self.ops.linear(x, layer.up), self.spec.activation), layer.down)


def rotate_heads(x: Tensor, rotation: PatchRotation) -> None:
    """Rotates x [rows, any, heads, head_dim] in place."""
    cos, sin = rotation.cos, rotation.sin
    first, second = x.float().chunk(2, dim=-1)
    x.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))


def rotation(spec: VisionSpec, coordinates: Tensor) -> PatchRotation:
    """Angles of patches at `coordinates` [2, rows] (row, column); each rotates half of the pairs of a head."""
    half = spec.head_dim // 2
    exponents = torch.arange(0, half, 2, device=coordinates.device).float() / half
    of_columns = exponents + 1 / half if spec.rope_stagger else exponents
    rows, columns = coordinates.float().unsqueeze(-1)
    both = torch.cat([rows * spec.rope_theta**-exponents, columns * spec.rope_theta**-of_columns], -1)[:, None, None]
    return PatchRotation(both.cos(), both.sin())
