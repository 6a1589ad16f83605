"""Admission: which waiting sequences may start, and how the prompts of running sequences share a step."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from heapq import heapify, heappop, heapreplace

import numpy as np

from lightllm_mp.scheduler.kv_memory import KvMemory
from lightllm_mp.scheduler.kv_space import KvSpace
from lightllm_mp.scheduler.output_lengths import OutputLengths, capacity, most, peak
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.sequence import Sequence

UPLOAD_POSITIONS = 1 << 18
"""Most cached positions whose ids and slots one plan uploads, 8 bytes each. A single sequence may have more."""


class Admission:
    def __init__(self, rows: Rows, kv: KvMemory) -> None:
        self._rows, self._kv = rows, kv
        self.lengths = OutputLengths()

    def admits(self, candidate: Sequence, cached: int) -> bool:
        """Whether KV memory holds the candidate beside the running sequences. The tree has `cached` of its ids locked.

        The charge of a sequence is the slots that it computes itself; other used slots are a constant."""
        return all(self._fits(space, candidate, cached) for space in self._kv.spaces)

    def _fits(self, space: KvSpace, candidate: Sequence, cached: int) -> bool:
        rows, running = self._rows, self._rows.running()
        computed = rows.computed[space.number, running]
        planned = rows.planned[running]
        length = np.append(np.maximum(planned, rows.target[running]), len(candidate.ids))
        prompt = np.append(rows.prompt[running], candidate.prompt_tokens)
        limit = np.append(rows.limit[running], candidate.limit) - prompt
        held = length - np.append(planned - computed, cached)
        room = capacity(space.pool.total) - (space.used - int(computed.sum()))
        if most(held, limit + prompt - 1 - length, space.bound) <= room:
            return True
        draws = np.concatenate((rows.draws[:, running], candidate.draws[:, None]), axis=1)
        final = self.lengths.predict(length - prompt, limit, draws)
        return peak(held, np.maximum(final + prompt - 1 - length, 0), space.bound) <= room

    def expected_tokens(self, waiting: Seq[Sequence]) -> float:
        """Tokens left to compute for the running sequences and for `waiting`. Assumes that answers get the lengths of
        recently finished ones."""
        rows, running = self._rows, self._rows.running()
        known = np.append(np.maximum(rows.planned, rows.target)[running], [len(s.ids) for s in waiting])
        prompt = np.append(rows.prompt[running], [s.prompt_tokens for s in waiting])
        limit = np.append(rows.limit[running], [s.limit for s in waiting])
        computed = np.append(rows.planned[running], [0] * len(waiting))
        answer = self.lengths.expected(known - prompt, np.maximum(limit - prompt, 0))
        return float(np.maximum(prompt + answer - computed, 0.0).sum())


def service_order(prompts: Seq[tuple[int, int, int]], budget: int) -> Iterator[tuple[int, int]]:
    """Share the `budget` of tokens that decode leaves in a step. `prompts`: (tenant, priority, tokens left) in service
    order. Yields (index, most tokens it may take); the caller stops when the budget is used up. The first index comes
    twice.

    With first come, first served, a long prompt blocks every short one behind it; with equal shares, all long prompts
    finish late. So the first prompt gets half, and the prompt with the fewest tokens left gets the rest: a short prompt
    starts at once, long prompts finish one after the other, and the first takes at most twice as long. Among the
    prompts of a tenant, a higher priority goes first.
    """
    if not prompts:
        return
    yield 0, -(-budget // 2)
    own: dict[int, list[int]] = {}
    for index in sorted(range(len(prompts)), key=lambda i: (-prompts[i][1], prompts[i][2], i), reverse=True):
        own.setdefault(prompts[index][0], []).append(index)
    first = [(prompts[indices[-1]][2], indices[-1], tenant) for tenant, indices in own.items()]
    heapify(first)
    while first:
        _, index, tenant = first[0]
        yield index, budget
        own[tenant].pop()
        if own[tenant]:
            following = own[tenant][-1]
            heapreplace(first, (prompts[following][2], following, tenant))
        else:
            heappop(first)
