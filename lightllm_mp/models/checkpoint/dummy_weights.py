"""Weights that nobody trained, for benchmarks: of a model's folder only the configuration is read."""

from __future__ import annotations

import math
import zlib
from collections.abc import Set

import torch

from lightllm_mp.models.checkpoint.files import Tensors
from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.spec import ModelSpec

DEVIATION = 0.02


class RandomWeights:
    """A `Checkpoint` made up on the device: matrices are normal around 0, norms leave their input's scale as it is,
    biases are zero. A tensor depends on its name alone, so that all ranks agree on it."""

    def __init__(self, spec: ModelSpec, params: list[Param], *, device: torch.device | str, dtype: torch.dtype) -> None:
        self._norm = 0.0 if spec.norm_offset else 1.0
        self._device, self._dtype = torch.device(device), dtype
        self._targets = {piece.name: param.target for param in params for piece in param.pieces}
        self.shapes = {piece.name: piece.shape for param in params for piece in param.pieces}
        self.sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in self.shapes.items()}

    def stream(self, wanted: set[str], partly: Set[str] = frozenset()) -> Tensors:
        for name, target in self._targets.items():
            if name in wanted:
                yield name, self._tensor(name, target)

    def _tensor(self, name: str, target: str) -> torch.Tensor:
        made = torch.empty(self.shapes[name], dtype=self._dtype, device=self._device)
        if target.endswith(".bias"):
            return made.zero_()
        if target.endswith("norm"):
            return made.fill_(self._norm)
        seed = zlib.crc32(name.encode())
        return made.normal_(0.0, DEVIATION, generator=torch.Generator(self._device).manual_seed(seed))
