"""Which leaf of the prefix tree was unused for longest, without walking the tree.

A heap whose entries may be out of date: a leaf that was used since, or is no longer evictable, is only noticed when it
comes up. So touching a node costs nothing, and finding the oldest leaf O(log n) on average.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightllm_mp.scheduler.prefix_tree import PrefixNode


class LruLeaves:
    """Every evictable leaf stands in the queue once (`PrefixNode.queued`), under a stamp not above its last use."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, PrefixNode]] = []
        self._order = count()

    def offer(self, node: PrefixNode) -> None:
        """`node` has changed; it joins if it is now evictable."""
        if node.evictable and not node.queued:
            node.queued = True
            heapq.heappush(self._heap, (node.last_use, next(self._order), node))

    def oldest(self) -> PrefixNode | None:
        """The evictable leaf whose last use is longest ago. It stays in the queue."""
        while self._heap:
            stamp, _, node = self._heap[0]
            if not node.evictable:
                heapq.heappop(self._heap)
                node.queued = False
            elif node.last_use != stamp:
                heapq.heapreplace(self._heap, (node.last_use, next(self._order), node))
            else:
                return node
        return None
