"""The device's row tables: a token id and a KV slot for each row and position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightllm_mp.models.decoder.kv_pool import lazy_zeros
from lightllm_mp.plan import Ints, PositionRuns, RowSetup

ALIGNED_WORDS = 4
"""Words of alignment: a table begins at a multiple of 16 bytes, as kernels need."""


def ramp(starts: NDArray[np.int64], counts: Ints) -> NDArray[np.int64]:
    """int64 [sum of counts]: starts[0], starts[0] + 1, .. (counts[0] numbers), then starts[1], .."""
    ends = counts.cumsum(dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + (starts - ends + counts).repeat(counts)


class RowTables:
    """`tokens` and `slots`, int32 [rows + 1, width]; entry (row, position) has the flat index row * width + position.
    `window_slots`: the same for layers with windows, if these have slots of their own.

    The last row is spare, for sequences that pad a step.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        device: torch.device,
        class_firsts: Sequence[int] = (0,),
        *,
        shifted: bool = False,
        spaces: int = 1,
    ) -> None:
        """`class_firsts`: the row in the rotary tables of position 0, for each length class. `shifted`: rows may add
        their `rotary_shift`. `spaces`: number of KV spaces."""
        self.rows, self.width, self.device = rows, width, device
        self.spare_row = rows
        self.tokens = lazy_zeros((rows + 1, width), torch.int32, device)
        words = (rows + 1) * width
        self.all_slots = lazy_zeros((spaces, -(-words // ALIGNED_WORDS) * ALIGNED_WORDS), torch.int32, device)
        self.slot_tables = [table[:words].view(rows + 1, width) for table in self.all_slots]
        self.slots, self.window_slots = self.slot_tables[0], self.slot_tables[1] if spaces > 1 else None
        self._used = np.zeros(rows + 1, np.bool_)
        """Rows that plans have written to since `clear`."""
        self.rotary_first = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        """Per row: offset from a position to its row in the rotary tables; may be negative."""
        self.classed = shifted or len(class_firsts) > 1
        """Whether rows differ in `rotary_first`."""
        self.host_rotary_first = np.zeros(rows + 1, np.int32)
        self._class_firsts = np.array(class_firsts, np.int32)

    def clear(self) -> None:
        if self.device.type == "cpu":  # writing zeros to unused pages would allocate them
            used = torch.from_numpy(np.flatnonzero(self._used))
            self.tokens[used] = 0
            for table in self.slot_tables:
                table[used] = 0
            self._used[:] = False
        else:
            self.tokens.zero_()
            self.all_slots.zero_()
        self.rotary_first.zero_()
        self.host_rotary_first[:] = 0

    def start_rows(self, setups: Sequence[RowSetup]) -> tuple[Ints, Ints]:
        """Records length class and shift of rows that start. Returns (rows, their `rotary_first`) for the device.

        ValueError for a class that the model does not have.
        """
        rows, classes, shifts = (
            np.array([setup.rules[name] for setup in setups], np.int32)
            for name in ("row", "rope_class", "rotary_shift")
        )
        if classes.min(initial=0) < 0 or classes.max(initial=0) >= len(self._class_firsts):
            raise ValueError(f"a plan names length class {classes.max()} of {len(self._class_firsts)}")
        self.host_rotary_first[rows] = firsts = self._class_firsts[classes] + shifts
        return rows, firsts

    def check(self, lines: Ints) -> int:
        """The largest count among `lines`, int32 [n > 0, 3] of (row, position, count).

        ValueError unless all are inside the tables: a run past a row's end would write into the next row.
        """
        row, start, count = lines.astype("<u4").max(0).tolist()  # unsigned: negative numbers become too large
        last = int((lines[:, 1] + lines[:, 2]).max())
        if row >= self.rows or max(start, count, last) > self.width:
            raise ValueError(f"a plan reaches outside the tables of {self.rows} rows and {self.width} positions")
        return count

    def flat(self, rows: Ints, positions: Ints | NDArray[np.int64]) -> NDArray[np.int64]:
        """Flat indices of single entries."""
        return rows.astype(np.int64) * self.width + positions

    def edits(self, edit: PositionRuns) -> tuple[NDArray[np.int64], Ints]:
        """The flat indices that a plan's runs write to, and the values. ValueError as for `check`."""
        if not len(edit.runs):
            return np.empty(0, np.int64), edit.values
        rows, starts, counts = edit.runs.T
        at = self.flat(rows, starts)
        longest = self.check(edit.runs)
        self._used[rows] = True
        if longest > 1 or len(at) != len(edit.values):
            at = ramp(at, counts)
        return at, edit.values

    def slot_edits(self, edit: PositionRuns) -> tuple[NDArray[np.int64], Ints]:
        """The same for slots: indices into `all_slots`. ValueError also for slots of a wrong number of spaces."""
        spaces, (at, values) = len(self.all_slots), self.edits(edit)
        if len(values) != spaces * len(at):
            raise ValueError(f"a plan has {len(values)} slots for {len(at)} positions in {spaces} spaces")
        words = self.all_slots.shape[1]
        return at if spaces == 1 else np.concatenate([at + space * words for space in range(spaces)]), values

    def write(self, table: Tensor, edits: tuple[NDArray[np.int64], Ints]) -> None:
        """Writes edits to one of the tables."""
        at, values = edits
        if len(at):
            table.view(-1)[torch.from_numpy(at).to(self.device)] = torch.from_numpy(values).to(self.device)
