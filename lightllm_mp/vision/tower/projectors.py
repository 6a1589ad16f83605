"""Projectors from a tower's output to embeddings of the language model: linear layers, merger, resampler."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from lightllm_mp.kernels.table import Norm
from lightllm_mp.vision.spec import VisionSpec
from lightllm_mp.vision.tower.parameters import TowerParameters

STANDARD = ("std_bias", "std_scale")


class Projector:
    """LLaVA's projector: linear layers with exact gelu between them."""

    def __init__(self, spec: VisionSpec, parameters: TowerParameters) -> None:
        self.ops = parameters.ops
        self._linears = [parameters.linear(f"projector.{i}") for i in range(spec.projector_layers)]

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, width] -> [rows, out]."""
        x = self.ops.linear(x, self._linears[0])
        for linear in self._linears[1:]:
            x = self.ops.linear(self.ops.activate(x, "gelu"), linear)
        return x


class Merger:
    """The projector of Qwen2.5-VL and Qwen3-VL: merge^2 neighbouring patches become one. Its norm is over a patch, or
    over all joined ones where it is that wide (DeepStack)."""

    def __init__(self, spec: VisionSpec, parameters: TowerParameters, at: str = "merge_") -> None:
        self.ops = parameters.ops
        self._joined = spec.merge * spec.merge * spec.width
        self._norm = parameters.norm(at + "norm", spec.norm_eps)
        self._up, self._down = parameters.linear(at + "up"), parameters.linear(at + "down")

    def __call__(self, x: Tensor) -> Tensor:
        """[patches, width] -> [patches / merge^2, out]."""
        wide = self._norm.weight.shape[0]
        x = self.ops.norm(x.view(-1, wide), self._norm).view(-1, self._joined)
        return self.ops.linear(self.ops.activate(self.ops.linear(x, self._up), "gelu"), self._down)


class PatchMerger:
    """The projector of Mistral 3 and Pixtral: merge^2 neighbouring patches become one, then linear layers follow."""

    def __init__(self, spec: VisionSpec, parameters: TowerParameters) -> None:
        self.ops = parameters.ops
        self._joined = spec.merge * spec.merge * spec.width
        self._norm = parameters.norm("merge_norm", spec.projector_eps) if spec.merge > 1 else None
        self._merge = parameters.linear("merge") if spec.merge > 1 else None
        self._project = Projector(spec, parameters)

    def __call__(self, x: Tensor) -> Tensor:
        """[patches, width] -> [patches / merge^2, out]."""
        if self._norm is not None:
            x = self.ops.linear(self.ops.norm(x, self._norm).reshape(-1, self._joined), self._merge)
        return self._project(x)


class AveragePooler:
    """Gemma 3's projector: a norm, averages of merge^2 neighbouring patches, a norm by 1 + weight, a projection."""

    def __init__(self, spec: VisionSpec, parameters: TowerParameters) -> None:
        self.ops, self._blocks, self._merge = parameters.ops, spec.grid // spec.merge, spec.merge
        self._norm = parameters.norm("final_norm", spec.norm_eps)
        self._pooled_norm = Norm(parameters.tensor("merge_norm").float() + 1.0, spec.norm_eps)
        self._project = parameters.linear("projector.0")

    def __call__(self, x: Tensor) -> Tensor:
        """[images, patches, width] -> [images, patches / merge^2, out]."""
        images, blocks, merge = x.shape[0], self._blocks, self._merge
        x = self.ops.norm(x.flatten(0, 1), self._norm).view(images, blocks, merge, blocks, merge, -1)
        x = x.float().mean((2, 4)).to(x.dtype).flatten(0, 2)
        return self.ops.linear(self.ops.norm(x, self._pooled_norm), self._project).unflatten(0, (images, -1))


class ScaledPooler:
    """Gemma 4's projector: averages of merge^2 neighbouring patches times sqrt(width), a norm, a projection."""

    def __init__(self, spec: VisionSpec, parameters: TowerParameters) -> None:
        self.ops, self._unit, self._scale = parameters.ops, spec.merge * spec.merge, spec.width**0.5
        bias, scale = (parameters.tensor(name).float() for name in STANDARD) if spec.standardize else (None, None)
        self._bias, self._spread = bias, scale
        self._project = parameters.linear("projector.0")
        self._norm = Norm(parameters.ones(spec.width), spec.norm_eps)

    def __call__(self, x: Tensor) -> Tensor:
        """[patches, width] -> [patches / merge^2, out]. The average is computed in float32: in float16 the factor could
        make it infinite."""
        pooled = x.unflatten(0, (-1, self._unit)).float().mean(1).mul_(self._scale)
        if self._bias is not None and self._spread is not None:
            pooled = (pooled - self._bias) * self._spread
        return self.ops.linear(self.ops.norm(pooled.to(x.dtype), self._norm), self._project)


class Resampler:
    """Qwen-VL's projector: learned queries attend to the patches of an image, then a norm and a projection follow.

    Positions are added to queries and keys, not to values; those of keys are interpolated to the patch grid.
    """

    def __init__(self, spec: VisionSpec, parameters: TowerParameters) -> None:
        self.spec = spec
        self.ops = parameters.ops
        eps, positions = spec.norm_eps, parameters.tensor("query_positions")
        query_in, self._key_in, self._value_in = parameters.linears("in", 3)
        query = self.ops.norm(parameters.tensor("query"), parameters.norm("query_norm", eps)) + positions
        self._query = self._heads(self.ops.linear(query, query_in), 1)
        self._key_positions = interpolated(positions, spec.grid)
        self._kv = parameters.linear("kv") if "kv" in parameters else None
        self._kv_norm, self._final_norm = parameters.norm("kv_norm", eps), parameters.norm("final_norm", eps)
        self._out, self._final = parameters.linear("out"), parameters.linear("final")

    def _heads(self, x: Tensor, images: int) -> Tensor:
        return x.view(images, -1, self.spec.query_heads, self.spec.out // self.spec.query_heads)

    def __call__(self, x: Tensor) -> Tensor:
        """[images, patches, width] -> [images, queries, out]."""
        ops, images = self.ops, x.shape[0]
        x = x.flatten(0, 1)
        x = ops.norm(x if self._kv is None else ops.linear(x, self._kv), self._kv_norm)
        at = self._key_positions.repeat(images, 1)
        keys, values = ops.linear(x + at, self._key_in), ops.linear(x, self._value_in)
        looked = ops.full_attention(
            self._query.expand(images, -1, -1, -1), self._heads(keys, images), self._heads(values, images)
        )
        normed = ops.norm(ops.linear(looked.flatten(0, 1), self._out), self._final_norm)
        return ops.linear(normed, self._final).unflatten(0, (images, -1))


def interpolated(table: Tensor, edge: int) -> Tensor:
    """A square table of positions [n * n, width], interpolated bicubically in float32 to [edge * edge, width]."""
    side = isqrt(table.shape[0])
    if side == edge:
        return table
    square = table.float().unflatten(0, (side, side)).permute(2, 0, 1).unsqueeze(0)
    wide = F.interpolate(square, size=(edge, edge), mode="bicubic", align_corners=False)
    return wide[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype)


def resampled(table: Tensor, at: Tensor, edges: Tensor) -> Tensor:
    """A square table of positions [n * n, width], interpolated bilinearly in float32 at `at` [2, patches] (row, column)
    of images with `edges` [2, patches] (rows, columns), whose corners are the table's: [patches, width]."""
    side = isqrt(table.shape[0])
    place = at.float() * (side - 1) / (edges - 1).clamp(min=1)
    first = place.long().clamp(max=side - 1)
    part, after = place - first, (first + 1).clamp(max=side - 1)
    wide, found = table.float(), torch.zeros(at.shape[1], table.shape[1], device=table.device)
    for row, down in ((first[0], 1 - part[0]), (after[0], part[0])):
        for column, across in ((first[1], 1 - part[1]), (after[1], part[1])):
            found.addcmul_(wide.index_select(0, row * side + column), (down * across)[:, None])
    return found.to(table.dtype)
