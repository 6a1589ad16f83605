"""Quantised weights, independent of the backend that packs them.

Three forms: 8-bit values with a scale per output, or per output and group of inputs (FP8 and int8 checkpoints, and
plain weights that are quantised at load), 4-bit codes with a scale and a zero point per group of inputs (AWQ, GPTQ and
compressed-tensors checkpoints), and rows of ggml blocks (GGUF files). `reference/quantised.py` defines their values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """weight[o, i] = values[o, i] * scales[o, i // group]. Weights of experts have a leading dimension of experts.

    Every output has scales of its own, also where the file has one for a block of 128 x 128 or for the whole tensor: so
    projections can be joined and cut anywhere. That costs 3 % of the memory for groups of 128 inputs.
    """

    values: Tensor
    """[n, k], int8 or float8_e4m3fn. While a checkpoint is read: or a lazy slice of it."""
    scales: Tensor
    """[n, ceil(k / group)] float32."""
    group: int = 0
    """Inputs that share a scale; 0: all."""

    @property
    def nbytes(self) -> int:
        """Bytes in a backend."""
        return self.values.nbytes + self.scales.nbytes

    def reordered(self, rows: Callable[[Tensor], Tensor]) -> ScaledWeight:
        """Outputs in another order; `rows` reorders the first dimension of a matrix."""
        values = rows(self.values.view(torch.uint8)).view(self.values.dtype)  # not every function takes 8-bit floats
        return ScaledWeight(values, rows(self.scales), self.group)

    def expert(self, number: int) -> ScaledWeight:
        """The weight of one expert."""
        return ScaledWeight(self.values[number], self.scales[number], self.group)


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """weight[o, i] = (codes[o, i] - zeros[o, g]) * scales[o, g] with g = group_of[i]."""

    codes: Tensor
    """[n, k] uint8 from 0 to 15, one per byte: a form for loading and cutting, not for keeping."""
    scales: Tensor
    """[n, groups], any floating type."""
    zeros: Tensor
    """[n, groups] uint8."""
    group_of: Tensor
    """[k] int32: the group of each input."""

    @property
    def nbytes(self) -> int:
        """Bytes in a backend, with two codes per byte."""
        return self.codes.nbytes // 2 + self.scales.nbytes + self.zeros.nbytes

    def rows(self, begin: int, end: int) -> GroupedWeight:
        """The outputs begin .. end - 1."""
        part = slice(begin, end)
        return GroupedWeight(self.codes[part], self.scales[part], self.zeros[part], self.group_of)

    def columns(self, begin: int, end: int) -> GroupedWeight:
        """The inputs begin .. end - 1, with their groups."""
        groups, group_of = torch.unique(self.group_of[begin:end], return_inverse=True)
        groups = groups.long()
        return GroupedWeight(
            self.codes[:, begin:end], self.scales[:, groups], self.zeros[:, groups], group_of.to(torch.int32)
        )

    def reordered(self, rows: Callable[[Tensor], Tensor]) -> GroupedWeight:
        """Outputs in another order; `rows` reorders the first dimension of a matrix."""
        return GroupedWeight(rows(self.codes), rows(self.scales), rows(self.zeros), self.group_of)

    def to(self, device: torch.device | str) -> GroupedWeight:
        return GroupedWeight(*(x.to(device) for x in (self.codes, self.scales, self.zeros, self.group_of)))


class BlockRows(NamedTuple):
    """Rows of a matrix as stored in a GGUF file."""

    rows: Tensor
    """uint8 [n, bytes of a row]; while they are read also with dimensions before."""
    type: GGMLQuantizationType

    @property
    def columns(self) -> int:
        """Inputs, k."""
        inputs, size = GGML_QUANT_SIZES[self.type]
        return self.rows.shape[1] // size * inputs

    def cut(self, begin: int, end: int) -> BlockRows | None:
        """The inputs begin .. end - 1; None where the cut is not between blocks."""
        inputs, size = GGML_QUANT_SIZES[self.type]
        if begin % inputs or end % inputs:
            return None
        return BlockRows(self.rows[:, begin // inputs * size : end // inputs * size], self.type)

    def padded(self, columns: int) -> BlockRows | None:
        """With inputs of zeros, up to `columns`; None where that is not between blocks."""
        inputs, size = GGML_QUANT_SIZES[self.type]
        if columns % inputs:
            return None
        missing = columns // inputs * size - self.rows.shape[1]
        return BlockRows(functional.pad(self.rows, (0, missing)), self.type) if missing else self

    def zeros(self, count: int) -> BlockRows:
        """Rows of zeros: in every type a block of zero bytes means zeros."""
        return BlockRows(self.rows.new_zeros(count, self.rows.shape[1]), self.type)


@dataclass(frozen=True, slots=True)
class BlockWeight:
    """Stacked rows of ggml blocks; the parts may have different types."""

    parts: tuple[BlockRows, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in a backend."""
        return sum(part.rows.nbytes for part in self.parts)


QuantisedWeight = ScaledWeight | GroupedWeight | BlockWeight


def stacked(parts: Sequence[GroupedWeight]) -> GroupedWeight | None:
    """Several weights over the same inputs as one, outputs stacked; None where their groups differ."""
    first = parts[0].group_of
    if any(not torch.equal(part.group_of, first) for part in parts[1:]):
        return None
    return GroupedWeight(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat([part.zeros for part in parts]),
        first,
    )
