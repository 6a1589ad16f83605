"""The weights of a tower in the form that the op table takes."""

from __future__ import annotations

import torch
from torch import Tensor

from lightllm_mp.kernels.table import Norm, OpTable, Prepared


class TowerParameters:
    """Weights by target (see tower_rules.py). Each is taken out of the given dictionary, so a projection is not kept in
    its plain form too."""

    def __init__(self, weights: dict[str, Tensor], ops: OpTable) -> None:
        self._weights = weights
        self._like = next(iter(weights.values()))[:0]
        self.ops = ops

    def __contains__(self, target: str) -> bool:
        return target in self._weights

    def tensor(self, target: str) -> Tensor:
        """A weight that is used as it is."""
        return self._weights.pop(target)

    def ones(self, count: int) -> Tensor:
        """[count], of the type and on the device of the weights."""
        return torch.ones(count, dtype=self._like.dtype, device=self._like.device)

    def linear(self, target: str) -> Prepared:
        """A projection, with its bias where the file has one. A convolution kernel becomes a matrix, one row per
        output."""
        weight, bias = self._weights.pop(target), self._weights.pop(target + ".bias", None)
        return self.ops.prepare_linear(weight.flatten(1), bias)

    def linears(self, target: str, parts: int) -> list[Prepared]:
        """`parts` projections whose outputs are stacked in one weight, with their biases."""
        weight, bias = self._weights.pop(target), self._weights.pop(target + ".bias")
        pairs = zip(weight.chunk(parts), bias.chunk(parts), strict=True)
        return [self.ops.prepare_linear(some, of_them) for some, of_them in pairs]

    def norm(self, target: str, eps: float) -> Norm:
        """Layer norm where there is a bias, else RMS norm."""
        weight, bias = self._weights.pop(target), self._weights.pop(target + ".bias", None)
        return Norm(weight, eps, bias, "rms" if bias is None else "layer")
