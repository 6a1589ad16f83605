"""Turns preprocessed images into embeddings of the language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightllm_mp.kernels.table import OpTable
from lightllm_mp.vision.parameters import TowerParameters
from lightllm_mp.vision.patch_layout import same_length, window_layout
from lightllm_mp.vision.preprocess import Preprocessed
from lightllm_mp.vision.projectors import Merger, Projector, Resampler, interpolated, resampled
from lightllm_mp.vision.sizing import grid_tokens
from lightllm_mp.vision.spec import VisionSpec
from lightllm_mp.vision.tower_ops import tower_ops
from lightllm_mp.vision.vit import Sequences, VisionTransformer, rotation


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
        self._layers = VisionTransformer(spec, parameters)
        dynamic = spec.preprocess.mode == "dynamic"
        self._merge = Merger(spec, parameters) if dynamic else None
        self._deep = [Merger(spec, parameters, f"deep.{i}.") for i in range(len(spec.deepstack))]
        self._positions = parameters.tensor("positions") if dynamic and spec.positions else None
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

    def _encode_dynamic(self, images: Sequence[Preprocessed], merge: Merger) -> list[Tensor]:
        spec, grids = self.spec, [image.grid for image in images]
        layout = window_layout(grids, spec.merge, spec.window)
        order, back, rows = (self._index(x) for x in (layout.order, layout.units_back, layout.full_rows))
        x = self.ops.linear(self._pixels(images).index_select(0, order), self._patch)
        at = self._index(layout.coordinates)
        if self._positions is not None:
            x += resampled(self._positions, at, self._index(layout.edges))
        windows = Sequences(layout.windows)
        whole = Sequences(layout.full, rows, torch.argsort(rows)) if spec.window else windows
        x, deep = self._layers(x, whole, windows, rotation(spec, at), self._deep)
        counts = [grid_tokens(spec, grid) for grid in grids]
        planes = [plane.index_select(0, back) for plane in (merge(x), *deep)]
        return list(torch.stack(planes).split(counts, dim=1) if deep else planes[0].split(counts))

    def _index(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)


class _FixedEnds:
    """Input and output stages for images of a fixed size: [images, tokens, width]."""

    def __init__(self, spec: VisionSpec, parameters: TowerParameters) -> None:
        self.spec = spec
        self.ops = parameters.ops
        table = parameters.tensor("positions")
        self._positions = table if spec.class_token else interpolated(table, spec.grid)
        self._class = parameters.tensor("class") if spec.class_token else None
        self._norm = parameters.norm("pre_norm", spec.norm_eps)
        self._resample = Resampler(spec, parameters) if spec.queries else None
        self._project = None if spec.queries else Projector(spec, parameters)

    def begin(self, x: Tensor) -> Tensor:
        if self._class is not None:
            x = torch.cat([self._class.expand(x.shape[0], 1, -1), x], dim=1)
        x = x + self._positions
        return self.ops.norm(x.flatten(0, 1), self._norm).view_as(x)

    def finish(self, x: Tensor) -> Tensor:
        """[images, slots, out]"""
        if self._project is None:
            assert self._resample is not None
            return self._resample(x)
        x = x[:, int(self.spec.class_token and not self.spec.keep_class) :]
        return self._project(x.flatten(0, 1)).unflatten(0, x.shape[:2])
