"""Puts streamed tensors together into the parameters that a decoder asks for."""

from __future__ import annotations

import math

import torch

from lightllm_mp.errors import ModelError
from lightllm_mp.kernels.table import OpTable, Prepared
from lightllm_mp.models.weights import Param, Piece


class Weights:
    """Parameters by target name. Projections are prepared for the op table as soon as they are whole, and their
    plain form is dropped, so that loading needs little more memory than the loaded model."""

    def __init__(self, params: list[Param], ops: OpTable, *, device: torch.device | str, dtype: torch.dtype) -> None:
        self._ops = ops
        self._device = device
        self._dtype = dtype
        self._params = {param.target: param for param in params}
        self._place: dict[str, list[tuple[Param, Piece, int]]] = {}
        self._missing: dict[str, int] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._linears: dict[str, Prepared] = {}
        for param in params:
            row = 0
            for piece in param.pieces:
                self._place.setdefault(piece.name, []).append((param, piece, row))
                row += piece.shape[0]
            self._missing[param.target] = len(param.pieces)

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters in the dtype they are loaded in."""
        return sum(math.prod(param.shape) for param in self._params.values()) * self._dtype.itemsize

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Copies one tensor of the file to where it belongs."""
        for param, piece, row in self._place[name]:
            whole = self._tensors.get(param.target)
            if whole is None:
                whole = torch.empty(param.shape, dtype=self._dtype, device=self._device)
                self._tensors[param.target] = whole
            whole[row : row + piece.shape[0]].copy_(piece.transform(tensor) if piece.transform else tensor)
            self._missing[param.target] -= 1
            self._prepare_if_whole(param.target.removesuffix(".bias"))

    def _prepare_if_whole(self, target: str) -> None:
        bias = target + ".bias"
        if len(self._params[target].shape) != 2 or target == "embed":
            return
        if self._missing[target] or self._missing.get(bias, 0):
            return
        weight = self._tensors.pop(target)
        self._linears[target] = self._ops.prepare_linear(weight, self._tensors.pop(bias, None))

    def tensor(self, target: str) -> torch.Tensor:
        """A parameter that is used as it is: a norm weight, the embedding."""
        if self._missing.get(target, 1):
            raise ModelError(f"parameter {target} is incomplete")
        return self._tensors[target]

    def linear(self, target: str) -> Prepared:
        """A projection in the op table's form."""
        if target not in self._linears:
            self._linears[target] = self._ops.prepare_linear(self.tensor(target), None)
        return self._linears[target]
