"""The allocator of an arena: a list of free extents, first fit, adjacent extents are merged."""

from __future__ import annotations

from bisect import bisect_left


class FreeList:
    """Free extents in [0, total), in granules, ordered by position. Only the arena's owner has this list."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._starts = [0]
        self._counts = [total]

    def take(self, count: int) -> int | None:
        """Takes `count` adjacent granules and returns the first. None if no extent is long enough."""
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
        """Frees granules that `take` has returned."""
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
        """Number of free extents; 1 if the free space is not fragmented."""
        return len(self._starts)
