"""Sequences in the order in which they are served: higher priority first, then arrival."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from lightllm_mp.scheduler.sequence import Sequence

_order = attrgetter("order")


class Ordered:
    """A sorted list. Adding and removing move memory but compare only O(log n) sequences."""

    def __init__(self) -> None:
        self._items: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        insort(self._items, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        at = bisect_left(self._items, sequence.order, key=_order)
        if at == len(self._items) or self._items[at] is not sequence:
            raise RuntimeError(f"sequence {sequence.rid} is not in this queue")
        del self._items[at]

    def clear(self) -> None:
        self._items.clear()

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, sequence: Sequence) -> bool:
        at = bisect_left(self._items, sequence.order, key=_order)
        return at < len(self._items) and self._items[at] is sequence
