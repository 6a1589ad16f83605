"""A quantised checkpoint, presented as if it held a weight for each projection: `X.weight` for its parts."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

import torch

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.files import FileTensors, check_plain
from lightllm_mp.models.checkpoint.quant_codes import decoded
from lightllm_mp.models.checkpoint.quant_config import QuantConfig
from lightllm_mp.models.checkpoint.quant_layout import StoredWeight, joined_shapes, stored_weights, surplus_biases

VALUES = {"scaled": ("F8_E4M3", "I8"), "nvfp4": ("U8",)}
"""Dtypes of the values of a weight by its form; other forms have int32 words."""
INTEGERS = dict.fromkeys((".qzeros", ".weight_zero_point", ".g_idx", ".weight_g_idx"), ("I32",))
"""Dtypes of other parts that hold no floating point numbers."""


class QuantisedCheckpoint:
    """A checkpoint whose `stream` decodes on `device`. A bias that is not wanted is ignored if it is zero."""

    def __init__(
        self,
        inner: FileTensors,
        config: QuantConfig,
        wanted: Set[str],
        *,
        device: torch.device | str,
        where: str,
    ) -> None:
        """`wanted`: the model's tensors among those of the files."""
        self._inner = inner
        self._device = device
        self._where = where
        weights = stored_weights(config, inner.shapes, where)
        self._weights = {weight.stem: weight for weight in weights}
        for weight in weights:
            self._check_types(weight)
        self._part_of = {weight.stem + part: (weight.stem, part) for weight in weights for part in weight.parts}
        self._zero = surplus_biases(weights, inner.shapes, wanted)
        joined = joined_shapes(inner.shapes, weights)
        self.shapes = {name: shape for name, shape in joined.items() if name not in self._zero}
        self.sizes = {name: inner.sizes.get(name, 0) for name in self.shapes}
        self.quantised: Set[str] = {weight.name for weight in weights}
        for weight in weights:
            self.sizes[weight.name] = sum(inner.sizes[weight.stem + part] for part in weight.parts)

    def stream(self, wanted: set[str], partly: Set[str] = frozenset()) -> Iterator[tuple[str, Any]]:
        """Yields plain tensors as they are read and quantised weights when all their parts are read."""
        stems = {stem for stem, weight in self._weights.items() if weight.name in wanted}
        plain = (wanted - self.quantised) | self._zero
        check_plain(self._inner, plain, self._where)
        names = plain | {name for name, (stem, _) in self._part_of.items() if stem in stems}
        waiting: dict[str, dict[str, Any]] = {stem: {} for stem in stems}
        lazy = {name for name in partly if name in plain or self._is_scaled(name)} - self._zero
        for name, tensor in self._inner.stream(names, lazy):
            if name in self._part_of:
                stem, part = self._part_of[name]
                weight, parts = self._weights[stem], waiting[stem]
                parts[part] = tensor if weight.scheme.form == "scaled" else tensor.to(self._device)
                if len(parts) == len(weight.parts):
                    yield weight.name, decoded(weight, waiting.pop(stem), self._where)
            elif name in self._zero:
                if tensor.any():
                    raise ModelError(f"{self._where}: tensor {name} is not zero, and the model has no such bias")
            else:
                yield name, tensor

    def _check_types(self, weight: StoredWeight) -> None:
        for part in weight.parts:
            name = weight.stem + part
            expected = INTEGERS.get(part, VALUES.get(weight.scheme.form, ("I32",)) if part == weight.parts[0] else ())
            if expected and (found := self._inner.coded.get(name, "floating point numbers")) not in expected:
                raise ModelError(
                    f"{self._where}: tensor {name} is stored as {found}, expected is {' or '.join(expected)}"
                )

    def _is_scaled(self, name: str) -> bool:
        weight = self._weights.get(name.removesuffix(".weight"))
        return weight is not None and weight.scheme.form == "scaled"
