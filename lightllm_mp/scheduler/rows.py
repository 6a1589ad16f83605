"""The table of running sequences, in columns: a decode step updates all rows with one numpy operation per column.

Plans that were given out compute a sequence's positions below `planned`; answered plans have computed the positions
below `confirmed`. Computing position p samples id p + 1.

A position has a slot in each space of KV slots. There is one space for all layers, or one for layers without a window
and one for layers with windows (see kv_memory.py).
"""

from __future__ import annotations

import contextlib
import heapq
import mmap
from collections.abc import Sequence as Seq

import numpy as np

from lightllm_mp.facts import EngineLimits
from lightllm_mp.plan import Ints
from lightllm_mp.scheduler.output_lengths import SAMPLES
from lightllm_mp.scheduler.sequence import Sequence


class Rows:
    """Row numbers are those of the worker; a sequence gets the lowest free row. An empty row has life 0 and limit 0."""

    def __init__(self, limits: EngineLimits) -> None:
        self.total = limits.running
        self._width = limits.width
        self._tails = np.array(seen_before(limits))
        self._lives = 0
        self.clear()

    def clear(self) -> None:
        n = self.total
        self.sequences: list[Sequence | None] = [None] * n
        self.life = np.zeros(n, np.int64)
        """Number of the present sequence's stay in the row. An answer for an earlier stay is dropped."""
        self.rid = np.zeros(n, np.int64)
        self.prompt = np.zeros(n, np.int64)
        self.target = np.zeros(n, np.int64)
        """Ids known at the start: positions below this are prefill, later positions are decode."""
        self.limit = np.zeros(n, np.int64)
        self.planned = np.zeros(n, np.int64)
        self.confirmed = np.zeros(n, np.int64)
        self.treed = np.zeros(n, np.int64)
        """Leading positions whose slots the prefix tree owns. The sequence owns the slots from there to `planned`."""
        spaces = len(self._tails)
        self.first = np.zeros((spaces, n), np.int64)
        """Positions before this are behind the window of a space's layers. The sequence holds none of their slots."""
        self.borrowed = np.zeros((spaces, n), np.int64)
        """Leading positions whose slots in a space were computed by another sequence."""
        self.unloaded = np.zeros(n, np.bool_)
        """No plan has loaded the recurrent state after those positions yet (scheduler/recurrent_states.py)."""
        self.tenant = np.zeros(n, np.int64)
        self.pooled = np.zeros(n, np.bool_)
        """The prompt gets a row of numbers instead of an answer."""
        self.heeds_eos = np.zeros(n, np.bool_)
        self.guided = np.zeros(n, np.bool_)
        self.held = np.zeros(n, np.bool_)
        """The sequence does not decode until its steps in flight are answered."""
        self.drafts = np.zeros(n, np.bool_)
        """The sequence may get draft tokens."""
        self.drafted = np.zeros(n, np.int64)
        """Number of draft tokens, the last planned positions. Until they are answered, the row does not decode."""
        self.has_stop_ids = np.zeros(n, np.bool_)
        self.stop_ids: list[frozenset[int]] = [frozenset()] * n
        self.draws = np.zeros((SAMPLES, n))
        # Host copies of the worker's tables.
        self.ids = sparse_table(n, self._width)
        self.slots = sparse_table(spaces * n, self._width).reshape(spaces, n, self._width)
        """[spaces, rows, width]"""
        self._free = list(range(n))

    @property
    def free(self) -> int:
        return len(self._free)

    def seat(self, sequence: Sequence, slots: Seq[Ints]) -> None:
        """Give a row to a sequence whose first positions are known, at `slots` in each space."""
        row = sequence.row = heapq.heappop(self._free)
        self._lives += 1
        self.sequences[row] = sequence
        self.life[row], self.rid[row] = self._lives, sequence.rid
        self.prompt[row], self.target[row] = sequence.prompt_tokens, len(sequence.ids)
        self.limit[row] = sequence.limit
        self.tenant[row], self.pooled[row] = sequence.tenant, sequence.pooled
        self.guided[row] = sequence.guided
        self.drafts[row] = sequence.terms.speculate and not sequence.guided
        # A guide allows an end-of-sequence id only where the answer has to end.
        self.heeds_eos[row] = sequence.guided or not sequence.sampling.ignore_eos
        self.has_stop_ids[row], self.stop_ids[row] = bool(sequence.stop_ids), sequence.stop_ids
        self.draws[:, row] = sequence.draws
        self.ids[row, : len(sequence.ids)] = sequence.ids
        self.start_from(row, slots)

    def start_from(self, row: int, slots: Seq[Ints]) -> None:
        """The row's first positions are computed already, at these slots in each space."""
        known = len(slots[0])
        self.planned[row] = self.confirmed[row] = self.treed[row] = self.borrowed[:, row] = known
        self.unloaded[row] = True
        self.see_from(row, known)
        for table, own in zip(self.slots, slots, strict=True):
            table[row, :known] = np.maximum(own, 0)  # HOLLOW becomes slot 0: no token reads it

    def see_from(self, row: int, position: int) -> None:
        """No step will compute a token before `position`."""
        self.first[:, row] = np.maximum(0, position - self._tails)

    def vacate(self, sequence: Sequence) -> None:
        row, sequence.row = sequence.row, -1
        self.sequences[row] = None
        self.held[row] = False
        self.drafted[row] = 0
        self.life[row] = self.limit[row] = self.planned[row] = self.target[row] = 0
        heapq.heappush(self._free, row)

    @property
    def owned(self) -> np.ndarray:
        """int64 [spaces, rows]: the first position whose slot the sequence owns. It owns the slots up to `planned`."""
        return np.maximum(self.treed, self.first)

    @property
    def computed(self) -> np.ndarray:
        """int64 [spaces, rows]: the number of slots that the sequence holds and has computed itself."""
        return self.planned - np.maximum(self.borrowed, self.first)

    def running(self) -> np.ndarray:
        """int64 [n] rows in use."""
        return np.flatnonzero(self.life)

    def decoding(self) -> np.ndarray:
        """int64 [n] rows that are past their prefill and have a token left to compute."""
        waits = self.held | (self.drafted > 0)
        return np.flatnonzero((self.planned >= self.target) & (self.planned < self.limit - 1) & ~waits)

    def known(self, row: int) -> int:
        """The number of the row's ids that are confirmed."""
        return int(max(self.target[row], self.confirmed[row] + 1))


def seen_before(limits: EngineLimits) -> list[int]:
    """The most tokens before its own that a token sees, for each space."""
    near = [limits.window - 1] if limits.window else []
    return near if near and not limits.window_tokens else [limits.width, *near]


def sparse_table(rows: int, width: int) -> Ints:
    """Zeros, int32 [rows, width]. Only touched parts take memory, in small pages: a huge page would span several long
    rows, and clearing one takes a millisecond, which is a quarter of a second for 256 rows in one step."""
    memory = mmap.mmap(-1, max(4 * rows * width, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.int32, rows * width).reshape(rows, width)
