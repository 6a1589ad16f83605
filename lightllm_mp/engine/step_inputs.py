"""The sequences of one step as host arrays, in the form that forward pass and sampler need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lightllm_mp.engine.row_tables import RowTables, ramp
from lightllm_mp.kernels.batch import Batch, StateSave
from lightllm_mp.plan import POOL, SAMPLE, Ints, PositionRuns

Longs = NDArray[np.int64]


@dataclass(slots=True)
class Step:
    """Host arrays. A line is the index of a new token among all new tokens of the step."""

    rows: Ints
    """[sequences]"""
    starts: Ints
    ends: Ints
    """[sequences]: lengths after the step, which are also the positions of the next tokens."""
    seq_start: Ints
    """[sequences + 1]: each sequence's first line; the last entry is the number of lines."""
    positions: Ints
    """[lines]"""
    at: Longs
    """[lines]: flat table indices of the new tokens."""
    sampled: Longs
    """Indices of the sampled sequences, in plan order."""
    pooled: Longs
    """Indices of the pooled sequences, in plan order."""
    rotary_first: Ints | None
    """[rows of the tables]: offset from a position to its row in the rotary tables, known once the plan's rows are set
    up. None: 0 for all."""
    rotary: PositionRuns | None
    """Rows in the rotary tables by component, for some positions. None: components do not differ."""
    max_count: int
    """The most new tokens of one sequence."""
    max_end: int
    ends_only: bool = False
    """The forward pass returns only the last line of each sequence."""
    state_saves: tuple[StateSave, ...] = ()
    """Recurrent states that are saved in the middle of the sequences' tokens."""

    @classmethod
    def of(cls, seqs: Ints, tables: RowTables, rotary: PositionRuns | None = None) -> Step:
        """From the sequences of a plan, int32 [n > 0, 4], and its `rotary` section. ValueError if a sequence has no new
        token or reaches outside the tables."""
        longest = tables.check(seqs[:, :3])
        rows, starts, counts, flags = np.ascontiguousarray(seqs.T)
        ends = starts + counts
        max_end = int(ends.max())
        if counts.min() < 1 or max_end >= tables.width:
            raise ValueError("a plan names a sequence without new tokens, or without room for the next one")
        seq_start = np.zeros(len(rows) + 1, np.int32)
        counts.cumsum(out=seq_start[1:])
        first = tables.flat(rows, starts)
        return cls(
            rows=rows,
            starts=starts,
            ends=ends,
            seq_start=seq_start,
            positions=starts if longest == 1 else ramp(starts.astype(np.int64), counts).astype(np.int32),
            at=first if longest == 1 else ramp(first, counts),
            sampled=np.flatnonzero(flags & SAMPLE),
            pooled=np.flatnonzero(flags & POOL),
            rotary_first=tables.host_rotary_first if tables.classed else None,
            rotary=rotary if rotary is not None and len(rotary.runs) else None,
            max_count=longest,
            max_end=max_end,
        )

    @property
    def rotary_at(self) -> Ints:
        """[lines]: each new token's row in the rotary tables; [lines, 3] if components differ."""
        at = self.positions
        if self.rotary_first is not None:
            at = at + self.rotary_first[self.rows].repeat(self.ends - self.starts)
        if self.rotary is None:
            return at
        at = at[:, None].repeat(3, 1)
        at[ramp(self.lines_of(self.rotary.runs), self.rotary.runs[:, 2])] = self.rotary.values
        return at

    def lines_of(self, runs: Ints) -> Longs:
        """The first line of each run, int32 [n, 3] of (row, position, count). ValueError for a run that the step does
        not compute."""
        order = self.rows.argsort()
        row, position, count = runs.T
        place = self.rows[order].searchsorted(row)
        at = order[place.clip(max=len(order) - 1)]
        inside = (self.rows[at] == row) & (position >= self.starts[at]) & (count > 0)
        if not (inside & (position + count <= self.ends[at])).all():
            raise ValueError("a plan names image or rotary positions that its step does not compute")
        return (self.seq_start[at] + position - self.starts[at]).astype(np.int64)

    @property
    def pooled_lines(self) -> Longs:
        """Index of each pooled sequence's last line in the result of the forward pass."""
        return self._last_lines(self.pooled)

    @property
    def sampled_lines(self) -> Longs:
        """Index of each sampled sequence's last line in the result of the forward pass."""
        return self._last_lines(self.sampled)

    def _last_lines(self, sequences: Longs) -> Longs:
        return sequences if self.ends_only else self.seq_start[1:][sequences].astype(np.int64) - 1

    @property
    def sampled_rows(self) -> Ints:
        """The row of each sampled sequence."""
        return self.rows[self.sampled]

    @property
    def sampled_ends(self) -> Longs:
        """The position of each sampled sequence's next token."""
        return self.ends[self.sampled].astype(np.int64)

    @property
    def joins(self) -> bool:
        """All sequences have one token, and some stand side by side in one row: those may be computed as one."""
        return self.max_count == 1 and bool((self.rows[1:] == self.rows[:-1]).any())

    def batch(self, tables: RowTables, at: torch.Tensor, *, join: bool = False) -> Batch:
        """The step as the forward pass takes it. `at` is this step's `at` on the device; `join`: see `joins`."""

        def put(array: Ints) -> torch.Tensor:
            return torch.from_numpy(array).to(tables.device)

        positions, seq_start, rows, ends = put(self.positions), self.seq_start, self.rows, self.ends
        if join:
            seq_start = np.flatnonzero(np.diff(rows, prepend=-1, append=-1)).astype(np.int32)
            rows, ends = rows[seq_start[:-1]], ends[seq_start[1:] - 1]
        near = tables.window_slots
        return Batch(
            positions=positions,
            slots=tables.slots.view(-1)[at],
            seq_start=put(seq_start),
            context=put(ends),
            rows=put(rows),
            slot_table=tables.slots,
            max_query=int(np.diff(seq_start).max()),
            max_context=self.max_end,
            rotary_at=positions if self.rotary_first is None and self.rotary is None else put(self.rotary_at),
            state_saves=self.state_saves,
            window_slots=None if near is None else near.view(-1)[at],
            window_table=near,
        )
