"""The queue of waiting sequences. It is fair between tenants: the tenant that has been served least comes next.

Virtual token counters after "Fairness in Serving Large Language Models" (OSDI'24): each tenant is charged for its
computed prompt tokens and its produced tokens. A tenant that returns after a pause is lifted to the lowest counter of
the tenants that stayed, so no tenant saves up a claim. A tenant that is alone uses the whole engine.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from lightllm_mp.scheduler.sequence import Sequence

OUTPUT_WEIGHT = 2.0
"""Cost of a produced token in computed prompt tokens, as in the paper."""


_order = attrgetter("order")


class Ordered:
    """A list of sequences in service order. Adding and removing move memory, but compare only O(log n) sequences."""

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


class Shares:
    """How much each tenant has been served, in prompt tokens. Tenants are numbered from 0 in order of arrival."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._served = np.zeros(0)
        self._live = np.zeros(0, np.int64)

    def clear(self) -> None:
        self._numbers.clear()
        self._served, self._live = np.zeros(0), np.zeros(0, np.int64)

    def enter(self, tenant: bytes, sequences: int) -> int:
        """Count new sequences of a tenant. Returns the tenant's number."""
        if not self._live.any():
            self.clear()  # tokens served before the engine was idle do not count
        number = self._numbers.setdefault(tenant, len(self._numbers))
        if number == len(self._served):
            self._served, self._live = np.append(self._served, 0.0), np.append(self._live, 0)
        if not self._live[number] and self._live.any():
            self._served[number] = max(self._served[number], self._served[self._live > 0].min())
        self._live[number] += sequences
        return number

    def leave(self, number: int) -> None:
        """One of the tenant's sequences has ended."""
        self._live[number] -= 1

    def computes(self, number: int, tokens: int) -> None:
        """Charge a tenant for prompt tokens that a step will compute."""
        self._served[number] += tokens

    def produces(self, numbers: NDArray[np.int64]) -> None:
        """Charge the tenant of each entry of `numbers` [n] for one produced token."""
        if len(self._served) > 1:
            self._served += OUTPUT_WEIGHT * np.bincount(numbers, minlength=len(self._served))

    def most(self, numbers: Iterable[int]) -> int:
        """The tenant among `numbers` that has been served most."""
        return max(numbers, key=lambda number: (self._served[number], number))

    def least(self, numbers: Iterable[int]) -> int:
        """The tenant among `numbers` that has been served least."""
        return min(numbers, key=lambda number: (self._served[number], number))


class WaitQueue:
    """Waiting sequences, or sequences whose prompts are being computed. The next one is the first in order of the
    tenant that has been served least."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._queues: dict[int, Ordered] = {}

    def add(self, sequence: Sequence) -> None:
        self._queues.setdefault(sequence.tenant, Ordered()).add(sequence)

    def remove(self, sequence: Sequence) -> None:
        queue = self._queues[sequence.tenant]
        queue.remove(sequence)
        if not len(queue):
            del self._queues[sequence.tenant]

    def clear(self) -> None:
        self._queues.clear()

    def __iter__(self) -> Iterator[Sequence]:
        """Sequences in service order. Each pick takes into account what tenants were charged since the one before. Do
        not add or remove sequences during the iteration."""
        left = {tenant: iter(queue) for tenant, queue in self._queues.items()}
        while left:
            tenant = self._shares.least(left) if len(left) > 1 else next(iter(left))
            sequence = next(left[tenant], None)
            if sequence is None:
                del left[tenant]
            else:
                yield sequence

    def __contains__(self, sequence: Sequence) -> bool:
        queue = self._queues.get(sequence.tenant)
        return queue is not None and sequence in queue

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))
