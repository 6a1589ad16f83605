"""Free extents of an arena: first fit, neighbours join when they are given back."""

from __future__ import annotations

from bisect import bisect_left


class FreeList:
    """Extents of whole granules in [0, total), ordered by position. Private memory of the arena's owner."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._starts = [0]
        self._counts = [total]

    def take(self, count: int) -> int | None:
        """The first granule of `count` neighbouring ones, now taken; None when no extent is long enough."""
        for index, have in enumerate(self._counts):
            if have < count:
                continue
            start = self._starts[index]
            if have == count:
                del self._starts[index], self._counts[index]
            else:
                self._starts[index] += count
                self._counts[index] -= count
            return start
        return None

    def give(self, start: int, count: int) -> None:
        """Returns granules that `take` handed out."""
        index = bisect_left(self._starts, start)
        joins_next = index < len(self._starts) and self._starts[index] == start + count
        joins_previous = index > 0 and self._starts[index - 1] + self._counts[index - 1] == start
        if joins_next:
            count += self._counts[index]
            del self._starts[index], self._counts[index]
        if joins_previous:
            self._counts[index - 1] += count
        else:
            self._starts.insert(index, start)
            self._counts.insert(index, count)

    @property
    def free(self) -> int:
        return sum(self._counts)

    @property
    def extents(self) -> int:
        """1 when nothing is fragmented."""
        return len(self._starts)
