"""The weights of a tower as the op table takes them."""

from __future__ import annotations

from torch import Tensor

from lightllm_mp.kernels.table import Norm, OpTable, Prepared


class TowerParameters:
    """Weights by target (see weights.py). What is taken leaves the dictionary that was given, so that a projection is
    not held in its plain form too."""

    def __init__(self, weights: dict[str, Tensor], ops: OpTable) -> None:
        self._weights = weights
        self.ops = ops

    def __contains__(self, target: str) -> bool:
        return target in self._weights

    def tensor(self, target: str) -> Tensor:
        """One that is used as it is."""
        return self._weights.pop(target)

    def linear(self, target: str) -> Prepared:
        """A projection, with its bias where the file has one. Kernels of convolutions become lines of a matrix."""
        weight, bias = self._weights.pop(target), self._weights.pop(target + ".bias", None)
        return self.ops.prepare_linear(weight.flatten(1), bias)

    def linears(self, target: str, parts: int) -> list[Prepared]:
        """Projections whose outputs are stacked in one weight, and their biases."""
        weight, bias = self._weights.pop(target), self._weights.pop(target + ".bias")
        pairs = zip(weight.chunk(parts), bias.chunk(parts), strict=True)
        return [self.ops.prepare_linear(some, of_them) for some, of_them in pairs]

    def norm(self, target: str, eps: float) -> Norm:
        """Layer norm where there is a bias, else RMS norm."""
        weight, bias = self._weights.pop(target), self._weights.pop(target + ".bias", None)
        return Norm(weight, eps, bias, "rms" if bias is None else "layer")
