"""Turns preprocessed images into embeddings of the language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightllm_mp.kernels.table import OpTable
from lightllm_mp.vision.preprocess import Preprocessed
from lightllm_mp.vision.sizing import PatchGrid
from lightllm_mp.vision.spec import VisionSpec
from lightllm_mp.vision.tower.clipped_vit import ClippedVisionTransformer
from lightllm_mp.vision.tower.parameters import TowerParameters
from lightllm_mp.vision.tower.patch_layout import same_length, window_layout
from lightllm_mp.vision.tower.projectors import (
    AveragePooler,
    Merger,
    PatchMerger,
    Projector,
    Resampler,
    ScaledPooler,
    interpolated,
    resampled,
)
from lightllm_mp.vision.tower.tower_ops import tower_ops
from lightllm_mp.vision.tower.vit import Sequences, VisionTransformer, rotation

DynamicProjector = Merger | PatchMerger | ScaledPooler


class VisionEncoder:
    """A vision tower with its projector. It takes its weights, by target (see tower_rules.py) in one dtype on one
    device, out of the dictionary. Memory of a batch grows with the sum of `image.grid.patches`; the caller limits
    it."""

    @torch.inference_mode()
    def __init__(self, spec: VisionSpec, weights: dict[str, Tensor], ops: OpTable | None = None) -> None:
        self.spec = spec
        patch = weights["patch"]
        self.device, self.dtype = patch.device, patch.dtype
        self.nbytes = sum(tensor.nbytes for tensor in weights.values())
        """Bytes of all weights."""
        self.ops = ops or tower_ops(self.device, self.dtype)
        parameters = TowerParameters(weights, self.ops)
        self._patch = parameters.linear("patch")
        self._layers: VisionTransformer | ClippedVisionTransformer
        self._layers = (ClippedVisionTransformer if spec.kind == "gemma4" else VisionTransformer)(spec, parameters)
        dynamic = spec.preprocess.mode == "dynamic"
        self._merge = MERGERS[spec.kind](spec, parameters) if dynamic else None
        self._deep = [Merger(spec, parameters, f"deep.{i}.") for i in range(len(spec.deepstack))]
        self._positions = parameters.tensor("positions") if dynamic and spec.positions else None
        self._pre_norm = parameters.norm("pre_norm", spec.norm_eps) if spec.kind == "pixtral" else None
        self._row_ends = parameters.tensor("row_ends") if spec.row_ends else None
        self._fixed = None if dynamic else _FixedEnds(spec, parameters)

    @torch.inference_mode()
    def encode(self, images: Sequence[Preprocessed]) -> list[Tensor]:
        """Embeddings of each image, in the tower's dtype on its device: [tokens, out], or with DeepStack
        [1 + levels, tokens, out].

        An embedding does not depend on the other images, except for rounding where the op table lacks `exact_rows`.
        """
        if not images:
            return []
        if self._merge is None:
            return self._encode_fixed(images)
        return self._encode_dynamic(images, self._merge)

    def _pixels(self, images: Sequence[Preprocessed]) -> Tensor:
        """All pixels, concatenated along the first dimension, or for images of a fixed size along a new one."""
        join = np.stack if self._fixed is not None else np.concatenate
        return torch.from_numpy(join([image.pixels for image in images])).to(self.device).to(self.dtype)

    def _encode_fixed(self, images: Sequence[Preprocessed]) -> list[Tensor]:
        assert self._fixed is not None
        pixels, edge = self._pixels(images), self.spec.patch
        grid = self.spec.grid
        patches = pixels.unflatten(3, (grid, edge)).unflatten(2, (grid, edge)).permute(0, 2, 4, 1, 3, 5)
        rows = self.ops.linear(patches.reshape(-1, self.spec.patch_values), self._patch)
        x = self._fixed.begin(rows.unflatten(0, (len(images), -1)))
        whole = Sequences(same_length(x.shape[0], x.shape[1]))
        rows, _ = self._layers(x.flatten(0, 1), whole, whole)
        return list(self._fixed.finish(rows.view_as(x)).unbind(0))

    def _encode_dynamic(self, images: Sequence[Preprocessed], merge: DynamicProjector) -> list[Tensor]:
        spec, grids = self.spec, [image.grid for image in images]
        layout = window_layout(grids, spec.merge, spec.window)
        order, back, rows = (self._index(x) for x in (layout.order, layout.units_back, layout.full_rows))
        x = self.ops.linear(self._pixels(images).index_select(0, order), self._patch)
        x = x if self._pre_norm is None else self.ops.norm(x, self._pre_norm)
        at = self._index(layout.coordinates)
        if self._positions is not None and self._positions.dim() == 3:
            x += self._positions[0][at[1]] + self._positions[1][at[0]]
        elif self._positions is not None:
            x += resampled(self._positions, at, self._index(layout.edges))
        windows = Sequences(layout.windows)
        whole = Sequences(layout.full, rows, torch.argsort(rows)) if spec.window else windows
        x, deep = self._layers(x, whole, windows, rotation(spec, at), self._deep)
        counts = [grid.patches // spec.merge**2 for grid in grids]
        planes = [plane.index_select(0, back) for plane in (merge(x), *deep)]
        if deep:
            return list(torch.stack(planes).split(counts, dim=1))
        return [self._with_row_ends(x, grid) for x, grid in zip(planes[0].split(counts), grids, strict=True)]

    def _with_row_ends(self, x: Tensor, grid: PatchGrid) -> Tensor:
        """The slots of an image with an embedding of the language model behind each row (Pixtral)."""
        if self._row_ends is None:
            return x
        rows = x.unflatten(0, (grid.rows // self.spec.merge, -1))
        between, last = self._row_ends
        ends = torch.cat([between.expand(rows.shape[0] - 1, -1), last.unsqueeze(0)])
        return torch.cat([rows, ends.unsqueeze(1)], dim=1).flatten(0, 1)

    def _index(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)


MERGERS: dict[str, type[Merger] | type[PatchMerger] | type[ScaledPooler]] = {
    "qwen2_5_vl": Merger,
    "qwen3_vl": Merger,
    "pixtral": PatchMerger,
    "gemma4": ScaledPooler,
}
"""By kind of the tower: the projector of images of a dynamic size."""
WHOLE: dict[str, type[AveragePooler] | type[Resampler]] = {"qwen_vl": Resampler, "siglip": AveragePooler}
"""By kind of the tower: the projector that takes all patches of an image of a fixed size together."""


class _FixedEnds:
    """Input and output stages for images of a fixed size: [images, tokens, width]."""

    def __init__(self, spec: VisionSpec, parameters: TowerParameters) -> None:
        self.spec = spec
        self.ops = parameters.ops
        table = parameters.tensor("positions")
        self._positions = table if spec.class_token else interpolated(table, spec.grid)
        self._class = parameters.tensor("class") if spec.class_token else None
        self._norm = parameters.norm("pre_norm", spec.norm_eps) if "pre_norm" in parameters else None
        self._whole: AveragePooler | Resampler | None = None
        if spec.kind in WHOLE:
            self._whole = WHOLE[spec.kind](spec, parameters)
        self._project = Projector(spec, parameters) if self._whole is None else None

    def begin(self, x: Tensor) -> Tensor:
        if self._class is not None:
            x = torch.cat([self._class.expand(x.shape[0], 1, -1), x], dim=1)
        x = x + self._positions
        return x if self._norm is None else self.ops.norm(x.flatten(0, 1), self._norm).view_as(x)

    def finish(self, x: Tensor) -> Tensor:
        """[images, slots, out]"""
        if self._project is None:
            assert self._whole is not None
            return self._whole(x)
        x = x[:, int(self.spec.class_token and not self.spec.keep_class) :]
        return self._project(x.flatten(0, 1)).unflatten(0, x.shape[:2])
