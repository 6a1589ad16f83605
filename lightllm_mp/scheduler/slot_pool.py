"""The pool of free KV slots, one slot per token: a stack of slot numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightllm_mp.plan import Ints


class SlotPool:
    """Gives out and takes back slot numbers 0 .. total - 1, in O(n). A fresh pool gives ascending runs."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.clear()

    def clear(self) -> None:
        """All slots are free again."""
        self._stack = np.arange(self.total - 1, -1, -1, dtype=np.int32)
        self._is_free = np.ones(self.total, np.bool_)
        self.free = self.total

    def alloc(self, n: int) -> Ints | None:
        """int32 [n] slots. None, and no slot is taken, when fewer are free."""
        if n > self.free:
            return None
        slots = self._stack[self.free - n : self.free][::-1].copy()
        self._is_free[slots] = False
        self.free -= n
        return slots

    def give_back(self, slots: Ints) -> None:
        """Free slots from `alloc`. RuntimeError when one is already free, which is a bug of its owner."""
        if self._is_free[slots].any():
            raise RuntimeError(f"slots freed twice: {slots[self._is_free[slots]].tolist()[:8]}")
        self._stack[self.free : self.free + len(slots)] = slots[::-1]
        self._is_free[slots] = True
        self.free += len(slots)

    def free_slots(self) -> Ints:
        """int32 [free], a view."""
        return self._stack[: self.free]

    def free_in(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of free slots from each of the ascending `starts` to the next start."""
        return np.add.reduceat(self._is_free.view(np.uint8), starts, dtype=np.int64)
