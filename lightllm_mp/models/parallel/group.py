"""The group of tensor-parallel ranks, as a decoder sees it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class RankGroup(Protocol):
    """All ranks call the same methods in the same order. Results are bitwise equal on every rank."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum(self, x: Tensor) -> Tensor:
        """The sum of every rank's `x`; may be computed in place."""
        ...

    def side_by_side(self, x: Tensor) -> Tensor:
        """Every rank's `x` [n, width] in rank order: [n, size * width]."""
        ...

    def from_first(self, x: Tensor) -> Tensor:
        """Rank 0's `x`, written in place into every rank's `x`."""
        ...

    def least(self, value: int) -> int:
        """The smallest of the ranks' `value`; it travels between the processes, not their devices."""
        ...


class SingleRank:
    """The group of one."""

    rank, size = 0, 1

    def sum(self, x: Tensor) -> Tensor:
        return x

    def side_by_side(self, x: Tensor) -> Tensor:
        return x

    def from_first(self, x: Tensor) -> Tensor:
        return x

    def least(self, value: int) -> int:
        return value
