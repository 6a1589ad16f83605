"""The tensor-parallel ranks that compute a step together, as a decoder sees them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class RankGroup(Protocol):
    """All ranks call the same methods in the same order. Results are the same on every rank, to the last bit."""

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
        """Rank 0's `x`, written into every rank's in place."""
        ...

    def least(self, value: int) -> int:
        """The smallest of every rank's `value`, between the processes: no device takes part."""
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
