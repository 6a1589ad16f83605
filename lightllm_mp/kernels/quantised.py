"""Quantised weights as values, whatever a backend makes of them.

Two forms: one scale per output (made at load from a plain weight), and codes of 4 bits with a scale and a zero point
per group of inputs (AWQ and GPTQ checkpoints). What each stands for is defined in `reference/quantised.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """weight[o, i] = values[o, i] * scales[o]."""

    values: Tensor
    """[n, k], int8 or float8_e4m3fn."""
    scales: Tensor
    """[n] float32, positive."""

    @property
    def nbytes(self) -> int:
        """Bytes that a backend keeps."""
        return self.values.nbytes + self.scales.nbytes


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """weight[o, i] = (codes[o, i] - zeros[o, g]) * scales[o, g] with g = group_of[i]."""

    codes: Tensor
    """[n, k] uint8 from 0 to 15, one a byte: a form to load and cut in, not to keep."""
    scales: Tensor
    """[n, groups], any floating type."""
    zeros: Tensor
    """[n, groups] uint8."""
    group_of: Tensor
    """[k] int32: the group of each input."""

    @property
    def nbytes(self) -> int:
        """Bytes that a backend keeps: two codes a byte."""
        return self.codes.nbytes // 2 + self.scales.nbytes + self.zeros.nbytes

    def rows(self, begin: int, end: int) -> GroupedWeight:
        """Some of the outputs."""
        part = slice(begin, end)
        return GroupedWeight(self.codes[part], self.scales[part], self.zeros[part], self.group_of)

    def columns(self, begin: int, end: int) -> GroupedWeight:
        """Some of the inputs, with the groups that they belong to."""
        groups, group_of = torch.unique(self.group_of[begin:end], return_inverse=True)
        groups = groups.long()
        return GroupedWeight(
            self.codes[:, begin:end], self.scales[:, groups], self.zeros[:, groups], group_of.to(torch.int32)
        )

    def reordered(self, rows: Callable[[Tensor], Tensor]) -> GroupedWeight:
        """Outputs in another order; `rows` reorders the first dimension of any tensor of two."""
        return GroupedWeight(rows(self.codes), rows(self.scales), rows(self.zeros), self.group_of)

    def to(self, device: torch.device | str) -> GroupedWeight:
        return GroupedWeight(*(x.to(device) for x in (self.codes, self.scales, self.zeros, self.group_of)))


QuantisedWeight = ScaledWeight | GroupedWeight


def stacked(parts: Sequence[GroupedWeight]) -> GroupedWeight | None:
    """The outputs of several weights over the same inputs as one weight; None where their groups differ."""
    first = parts[0].group_of
    if any(not torch.equal(part.group_of, first) for part in parts[1:]):
        return None
    return GroupedWeight(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat([part.zeros for part in parts]),
        first,
    )
