"""Who may start, and how prompts that have started share a step."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq

import numpy as np

from lightllm_mp.messages import EngineLimits
from lightllm_mp.scheduler.kv_memory import KvMemory
from lightllm_mp.scheduler.output_lengths import OutputLengths, capacity, most, peak
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.sequence import Sequence


class Admission:
    def __init__(self, limits: EngineLimits, rows: Rows, kv: KvMemory) -> None:
        self._rows, self._kv = rows, kv
        self._capacity = capacity(limits.kv_tokens)
        self.lengths = OutputLengths()

    def admits(self, candidate: Sequence, cached: int) -> bool:
        """Does the memory hold the candidate beside those that run? `cached` of its ids are locked in the tree.

        A sequence is charged what it computes itself; the slots that nobody running has computed are a constant."""
        rows, running = self._rows, self._rows.running()
        planned, borrowed = rows.planned[running], rows.borrowed[running]
        length = np.append(np.maximum(planned, rows.target[running]), len(candidate.ids))
        prompt = np.append(rows.prompt[running], candidate.prompt_tokens)
        limit = np.append(rows.limit[running], candidate.limit) - prompt
        held = length - np.append(borrowed, cached)
        room = self._capacity - (self._kv.used - int((planned - borrowed).sum()))
        if most(held, limit + prompt - 1 - length) <= room:
            return True
        draws = np.concatenate((rows.draws[:, running], candidate.draws[:, None]), axis=1)
        final = self.lengths.predict(length - prompt, limit, draws)
        return peak(held, np.maximum(final + prompt - 1 - length, 0)) <= room


def service_order(prompts: Seq[tuple[int, int]], budget: int) -> Iterator[tuple[int, int]]:
    """How prompts share the tokens that decoding leaves of a step. `prompts`: (priority, tokens left) in order of
    service. Yields (index, most tokens it may take), until the budget is used up; the first index comes twice.

    First come, first served lets a long prompt hold up every short one behind it; with equal shares all long prompts
    finish late together. So the first prompt gets half, and the other half goes to the prompt that needs least: a short
    prompt starts at once, long ones finish one after the other, and the first is slowed down by two at most. A higher
    priority goes first in both halves.
    """
    if not prompts:
        return
    yield 0, -(-budget // 2)
    for index in sorted(range(len(prompts)), key=lambda i: (-prompts[i][0], prompts[i][1], i)):
        yield index, budget
