"""Random weights for benchmarks (`--load-format dummy`): only the configuration of a model folder is read."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Set

import torch

from lightllm_mp.models.checkpoint.files import Tensors
from lightllm_mp.models.checkpoint.weight_rules import Param

DEVIATION = 0.02


class RandomWeights:
    """A `Checkpoint` of random tensors, made on the device: matrices are normal around 0, norms `norm`, biases 0.

    A tensor depends on its name alone, so all ranks agree on it.
    """

    def __init__(
        self, params: Iterable[Param], *, norm: float = 1.0, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        params, self._norm = list(params), norm
        self._device, self._dtype = torch.device(device), dtype
        self._targets = {piece.name: param.target for param in params for piece in param.pieces}
        self.shapes = {piece.name: piece.file_shape for param in params for piece in param.pieces}
        self.quantised: Set[str] = frozenset()
        self.sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in self.shapes.items()}

    def stream(self, wanted: set[str], partly: Set[str] = frozenset()) -> Tensors:
        for name, target in self._targets.items():
            if name in wanted:
                yield name, self._tensor(name, target)

    def _tensor(self, name: str, target: str) -> torch.Tensor:
        made = torch.empty(self.shapes[name], dtype=self._dtype, device=self._device)
        if target.endswith(".bias"):
            return made.zero_()
        if target.endswith("_scale"):
            return made.fill_(1.0)
        if target.endswith("norm"):
            return made.fill_(1.0 if target.endswith("delta.norm") else self._norm)  # it has no offset
        seed = zlib.crc32(name.encode())
        return made.normal_(0.0, DEVIATION, generator=torch.Generator(self._device).manual_seed(seed))
