"""Turns preprocessed pictures into embeddings of the language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightllm_mp.vision.heads import Resampler, interpolated, merged, projected
from lightllm_mp.vision.layout import same_length, window_layout
from lightllm_mp.vision.preprocess import Preprocessed
from lightllm_mp.vision.sizing import grid_tokens
from lightllm_mp.vision.spec import VisionSpec
from lightllm_mp.vision.vit import Sequences, VisionTransformer, Weights, normalise, rotation


class VisionEncoder:
    """A vision tower and its way to the language model. Batches are as large as the caller makes them: memory grows
    with the sum of `image.grid.patches`."""

    def __init__(self, spec: VisionSpec, weights: Weights) -> None:
        self.spec = spec
        self.weights = weights
        patch = weights["patch"]
        self.device, self.dtype = patch.device, patch.dtype
        self._patch = patch.reshape(spec.width, spec.patch_values)
        self._layers = VisionTransformer(spec, weights)
        self._fixed = None if spec.preprocess.mode == "dynamic" else _FixedEnds(spec, weights)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(tensor.nbytes for tensor in self.weights.values())

    @torch.inference_mode()
    def encode(self, images: Sequence[Preprocessed]) -> list[Tensor]:
        """Embeddings [tokens, out] of each picture, in the tower's dtype on its device.

        What comes out for a picture does not depend on its companions, but for the rounding of sums.
        """
        if not images:
            return []
        if self._fixed is not None:
            return self._encode_fixed(images, self._fixed)
        return self._encode_dynamic(images)

    def _pixels(self, images: Sequence[Preprocessed]) -> Tensor:
        """All pixels, stacked along the first dimension, or for pictures of a fixed size along a new one."""
        join = np.stack if self._fixed is not None else np.concatenate
        return torch.from_numpy(join([image.pixels for image in images])).to(self.device).to(self.dtype)

    def _encode_fixed(self, images: Sequence[Preprocessed], ends: _FixedEnds) -> list[Tensor]:
        pixels, edge = self._pixels(images), self.spec.patch
        grid = self.spec.grid
        patches = pixels.unflatten(3, (grid, edge)).unflatten(2, (grid, edge)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        x = ends.begin(F.linear(patches.flatten(1, 2), self._patch))
        whole = Sequences(same_length(x.shape[0], x.shape[1]))
        rows = self._layers(x.flatten(0, 1), whole, whole)
        return list(ends.finish(rows.view_as(x)).unbind(0))

    def _encode_dynamic(self, images: Sequence[Preprocessed]) -> list[Tensor]:
        spec, grids = self.spec, [image.grid for image in images]
        layout = window_layout(grids, spec.merge, spec.window)
        order, back, rows = (self._index(x) for x in (layout.order, layout.units_back, layout.full_rows))
        x = F.linear(self._pixels(images).index_select(0, order), self._patch)
        whole = Sequences(layout.full, rows, torch.argsort(rows))
        turn = rotation(spec, self._index(layout.coordinates))
        x = self._layers(x, whole, Sequences(layout.windows), turn)
        merged_patches = merged(x, spec, self.weights).index_select(0, back)
        return list(merged_patches.split([grid_tokens(spec, grid) for grid in grids]))

    def _index(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)


class _FixedEnds:
    """What stands before and after the layers where all pictures have one size: [pictures, tokens, width]."""

    def __init__(self, spec: VisionSpec, weights: Weights) -> None:
        self.spec = spec
        self.weights = weights
        with torch.inference_mode():
            table = weights["positions"]
            self._positions = table if spec.class_token else interpolated(table, spec.grid)
            self._resample = Resampler(spec, weights) if spec.queries else None

    def begin(self, x: Tensor) -> Tensor:
        if self.spec.class_token:
            x = torch.cat([self.weights["class"].expand(x.shape[0], 1, -1), x], dim=1)
        return normalise(x + self._positions, self.weights, "pre_norm", self.spec.norm_eps)

    def finish(self, x: Tensor) -> Tensor:
        """[pictures, slots, out]"""
        if self._resample is not None:
            return self._resample(x)
        return projected(x[:, int(self.spec.class_token and not self.spec.keep_class) :], self.spec, self.weights)
