"""Forced ids of constrained answers: one chunk computes all of them, as for a prompt, instead of one id a step.

The guide announces forced ids when the step that samples the first one is in flight. That step and later ones in flight
sample the same ids, because their masks allow no others. So an answer does not depend on when it jumps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from lightllm_mp.facts import EngineLimits
from lightllm_mp.messages import RUNNING, Advance, Forced, Tokens, Wire
from lightllm_mp.plan import Ints
from lightllm_mp.scheduler.counters import Counters
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.sequence import Sequence

WORTH_A_CHUNK = (1, 8)
"""Fewest ids worth a jump, without and with run-ahead. A GPU runs steps of single tokens as CUDA graphs, and other
steps kernel by kernel."""


class Jumps:
    """Announced jumps of the sequences in `live`, which is the scheduler's table by rid."""

    def __init__(self, limits: EngineLimits, rows: Rows, live: Mapping[int, Sequence], counters: Counters) -> None:
        self._eos_ids, self._rows, self._live, self._counters = limits.eos_ids, rows, live, counters
        self._fewest = WORTH_A_CHUNK[limits.run_ahead > 0]
        self._noted: dict[int, tuple[Sequence, int, Ints]] = {}

    def note(self, message: Forced) -> None:
        """The answer has `message.ids` after its first `message.count` ids."""
        if (sequence := self._live.get(message.rid)) is None:
            return
        ids = np.frombuffer(message.ids, "<i4")
        ends = np.flatnonzero(np.isin(ids, [*self._eos_ids, *sequence.stop_ids]))
        ids = ids[: ends[0]] if len(ends) else ids
        self._noted[sequence.rid] = sequence, sequence.prompt_tokens + message.count, ids

    def clear(self) -> None:
        self._noted.clear()

    def take(self) -> Iterator[tuple[Sequence, list[Wire]]]:
        """The sequences that jump now, each with its events: one Tokens for each id, and an Advance. Then their rows
        have known ids to compute again."""
        rows = self._rows
        for sequence, first, ids in list(self._noted.values()):
            row = sequence.row
            if self._live.get(sequence.rid) is not sequence:
                del self._noted[sequence.rid]
                continue
            if row < 0 or rows.planned[row] < rows.target[row]:
                continue  # the sequence waits, or its prompt is not computed
            left = ids[rows.planned[row] + 1 - first :][: max(0, rows.limit[row] - rows.planned[row] - 2)]
            if len(left) < self._fewest:
                rows.held[row] = False
                del self._noted[sequence.rid]
            elif rows.confirmed[row] < rows.planned[row]:
                rows.held[row] = True
            else:
                rows.held[row] = False
                del self._noted[sequence.rid]
                yield sequence, self._apply(sequence, left)

    def _apply(self, sequence: Sequence, ids: Ints) -> list[Wire]:
        row, rows = sequence.row, self._rows
        self._counters.generation_tokens += len(ids)
        begin = int(rows.planned[row]) + 1
        rows.ids[row, begin : begin + len(ids)] = ids
        rows.target[row] = begin + len(ids)
        sequence.ids, sequence.uploaded = rows.ids[row, : begin + len(ids)].copy(), begin
        rid, logprob, running = np.array([sequence.rid], "<i8").tobytes(), bytes(4), bytes([RUNNING])
        events: list[Wire] = [Tokens(rid, token.tobytes(), logprob, running) for token in ids]
        return [*events, Advance(rid * len(ids), ids.tobytes())]
