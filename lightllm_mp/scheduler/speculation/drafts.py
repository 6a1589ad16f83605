"""Speculative decoding: steps compute draft tokens behind the tokens of decoding sequences, and keep the accepted ones.

A row that goes on with k draft tokens occurs 1 + k times in a plan, each time as a sequence of one token (an entry), so
the worker samples the id after each of them. Samples are a function of (seed, position) and of the ids before, so if
all draft ids before an entry are right, its sample is that of a run without drafts: an answer does not depend on its
drafts. Refused positions lie behind the confirmed ones; their slots are free as soon as the step is answered.

With steps in flight, a row's last ids are not known. A row that repeats itself waits until they are, and then for the
answer to its draft; other rows run ahead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightllm_mp.facts import EngineLimits
from lightllm_mp.messages import RUNNING, StepDone
from lightllm_mp.plan import Ints
from lightllm_mp.scheduler.counters import Counters
from lightllm_mp.scheduler.finish_reasons import finish_reasons
from lightllm_mp.scheduler.kv_memory import KvMemory
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.speculation.draft_depth import Acceptance, StepTimes, best_depths, depths
from lightllm_mp.scheduler.speculation.ngram_index import NgramIndex
from lightllm_mp.scheduler.step_writer import InFlightStep

Longs = NDArray[np.int64]

LINES = 64
"""Most draft tokens of a step, and most sampled tokens of a step with drafts, unless more rows may run. Such a step
takes no more memory than the largest decode step, which the worker has room for."""
PROMPTS_SHARE, BESIDE_PROMPTS = 4, np.array([0.3])
"""Beside prompts, drafts get at most 1 / PROMPTS_SHARE of a step, and a token is drafted only if its chance of
acceptance is at least BESIDE_PROMPTS: it takes the place of a prompt token."""


class Drafts:
    def __init__(self, limits: EngineLimits, rows: Rows, kv: KvMemory, counters: Counters) -> None:
        self._limits, self._rows, self._kv, self._counters = limits, rows, kv, counters
        self._most = limits.draft_tokens
        self._times, self._acceptance = StepTimes(), Acceptance(rows.total)
        self._proposed: dict[int, Ints] = {}
        """The drafts of the current plan, by row."""

    def ready(self, decoding: Longs, *, beside_prompts: bool) -> Longs:
        """The rows of `decoding` that are planned now. A row whose draft waits for ids in flight is left out."""
        self._proposed.clear()
        if not self._most or not len(decoding):
            return decoding
        rows, waits = self._rows, np.zeros(len(decoding), np.bool_)
        for index, depth in self._wanted(decoding, beside_prompts=beside_prompts):
            row = int(decoding[index])
            draft = self._propose(row, min(depth, int(rows.limit[row] - rows.planned[row]) - 2))
            if not len(draft):
                continue
            if rows.confirmed[row] < rows.planned[row]:
                waits[index] = True
            else:
                self._proposed[row] = draft
        return decoding[~waits]

    def _wanted(self, decoding: Longs, *, beside_prompts: bool) -> list[tuple[int, int]]:
        """(index, depth) of the rows for which a draft is worth its cost."""
        rows, limits, count = self._rows, self._limits, len(decoding)
        able = np.flatnonzero(rows.drafts[decoding])
        room = min(max(limits.running, LINES) - count, limits.step_tokens - count, LINES)
        if beside_prompts:
            room = min(room, limits.step_tokens // PROMPTS_SHARE)
        if not len(able) or room <= 0:
            return []
        taken = decoding[able]
        rates, most = self._acceptance.rates(taken, rows.life[taken]), min(self._most, max(1, room // len(able)))
        if beside_prompts:
            deep = depths(rates, most, BESIDE_PROMPTS)[0]
        else:
            deep = best_depths(rates, most, count, self._times)
        self._acceptance.recover(taken[deep == 0])
        able, deep = able[deep > 0][:room], deep[deep > 0][:room]
        return list(zip(able.tolist(), deep.tolist(), strict=True))

    def _propose(self, row: int, most: int) -> Ints:
        sequence, rows = self._rows.sequences[row], self._rows
        assert sequence is not None
        if sequence.index is None:
            sequence.index = NgramIndex()
        draft = sequence.index.propose(rows.ids[row, : rows.known(row)], max(most, 0))
        strange = np.flatnonzero((draft < 0) | (draft >= self._limits.vocab_size))  # ids of images
        return draft[: strange[0]] if len(strange) else draft

    def place(self, decoding: Longs) -> int:
        """Give slots to the drafts of the rows `decoding`, whose next tokens are planned, as long as slots are free
        beside one for each row. Returns the number of draft tokens."""
        rows, placed = self._rows, 0
        for row in decoding[np.isin(decoding, list(self._proposed))].tolist() if self._proposed else ():
            draft, start = self._proposed[row], int(rows.planned[row])
            slots = self._kv.take(len(draft)) if self._kv.available >= len(draft) + len(decoding) else None
            if slots is None:
                break
            end = start + len(draft)
            rows.slots[:, row, start:end], rows.ids[row, start:end] = slots, draft
            rows.planned[row], rows.drafted[row] = end, len(draft)
            placed += len(draft)
        self._counters.draft_tokens += placed
        return placed

    def verify(self, flight: InFlightStep, answer: StepDone) -> NDArray[np.bool_]:
        """bool, per entry of an answered step: whether its sample counts. Frees the slots of refused draft tokens."""
        self._times.add(flight.tokens, answer.seconds)
        kept = np.ones(len(flight.rows), np.bool_)
        if flight.drafts:
            kept[: flight.decodes] = self._kept(flight, answer)
            self._take_back(flight, kept[: flight.decodes])
        return kept

    def _kept(self, flight: InFlightStep, answer: StepDone) -> NDArray[np.bool_]:
        """bool, per decode entry. An entry behind a draft token counts if that token equals the sample of the entry
        before, and so on back to the row's first entry, and if the answer had not ended there."""
        rows, count = self._rows, flight.decodes
        lines, ends = flight.rows[:count], flight.ends[:count]
        ids, logprobs = np.frombuffer(answer.ids, "<i4")[:count], np.frombuffer(answer.logprobs, "<f4")[:count]
        goes_on = finish_reasons(rows, self._limits.eos_ids, lines, ends, ids) == RUNNING
        right = goes_on & (ids == rows.ids[lines, ends]) & np.isfinite(logprobs)
        first = np.append(True, lines[1:] != lines[:-1])
        # An entry behind others whose logits are not finite is refused: a later step computes it again and fails then,
        # when no token before it is lost.
        wrong = ~first & ~(np.append(True, right[:-1]) & np.isfinite(logprobs))
        before = np.cumsum(wrong)
        return before == np.maximum.accumulate(np.where(first, before, 0))

    def _take_back(self, flight: InFlightStep, kept: NDArray[np.bool_]) -> None:
        rows, lines = self._rows, flight.rows[: flight.decodes]
        firsts = np.flatnonzero(np.append(True, lines[1:] != lines[:-1]))
        right = np.add.reduceat(kept, firsts, dtype=np.int64) - 1
        taken = lines[firsts]
        here = (rows.life[taken] == flight.lives[firsts]) & (rows.drafted[taken] > 0)
        taken, right = taken[here], right[here]
        self._acceptance.add(taken, rows.drafted[taken], right)
        self._counters.accepted_tokens += int(right.sum())
        for row, refused in zip(taken.tolist(), (rows.drafted[taken] - right).tolist(), strict=True):
            if refused:
                self._kv.take_back(row, refused)
        rows.drafted[taken] = 0
