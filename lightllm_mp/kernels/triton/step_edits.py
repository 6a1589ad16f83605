"""Kernels around a forward pass: they write a plan's edits, a decode step's inputs, and the sampled ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.triton.block_sizes import round_up
from lightllm_mp.kernels.triton.launch import kernel

BLOCK = 1024
ALIGNED_WORDS = 4
"""int32 tensors of a multiple of this length keep the next one aligned."""


class DecodeInputs:
    """The sequences of a decode step at a fixed address, so that one CUDA graph serves all steps of a size.

    `seqs` int32 [2, most]: rows, and lengths after the step. Padding is row `spare_row` with length 1.
    """

    def __init__(self, most: int, spare_row: int, device: torch.device) -> None:
        most = round_up(most, ALIGNED_WORDS)
        self.most, self.spare_row = most, spare_row
        self.seqs = torch.empty((2, most), dtype=torch.int32, device=device)
        self.seqs[0].fill_(spare_row)
        self.seqs[1].fill_(1)
        self._seq_start = torch.arange(most + 1, dtype=torch.int32, device=device)

    def batch(self, size: int, tokens: Tensor, slots: Sequence[Tensor], rotary_first: Tensor) -> tuple[Tensor, Batch]:
        """Ids int32 [size] and inputs of the first `size` sequences, read from the tables [rows + 1, width]; those of
        `slots` are one for all layers, or a second one for layers with windows."""
        spaces = len(slots)
        made = torch.empty((3 + spaces, round_up(size, ALIGNED_WORDS)), dtype=torch.int32, device=tokens.device)
        ids, positions, rotary_at, *places = made[:, :size]
        _lay_out_kernel.launch(
            (triton.cdiv(size, BLOCK), 1, 1),
            _lay_out_kernel.arguments(
                seqs=self.seqs,
                tokens=tokens,
                slots=slots[0],
                windows=slots[-1],
                rotary_first=rotary_first,
                made=made,
                size=size,
                stride=made.shape[1],
                most=self.most,
                width=tokens.shape[1],
                WINDOWS=spaces > 1,
                BLOCK=BLOCK,
            ),
        )
        return ids, Batch(
            positions=positions,
            slots=places[0],
            seq_start=self._seq_start[: size + 1],
            context=self.seqs[1, :size],
            rows=self.seqs[0, :size],
            slot_table=slots[0],
            max_query=1,
            max_context=tokens.shape[1],
            rotary_at=rotary_at,
            window_slots=places[1] if spaces > 1 else None,
            window_table=slots[1] if spaces > 1 else None,
        )


class TableEdit(NamedTuple):
    """Where the edits of one table are in a step's words."""

    indices: int
    """Offset of the flat indices to write to."""
    values: int
    """Offset of the values."""
    length: int


class TableEdits(NamedTuple):
    """A plan's edits of the row tables."""

    tokens: TableEdit
    slots: TableEdit
    rotary_first: TableEdit


def edit(words: Tensor, edits: TableEdits, tokens: Tensor, slots: Tensor, rotary_first: Tensor) -> None:
    """Writes the edits in `words` (int32) to the tables (int32), those of slots in all spaces."""
    most = max(edits.tokens.length, edits.slots.length, edits.rotary_first.length)
    if most:
        _edit_kernel.launch(
            (triton.cdiv(most, BLOCK), len(edits), 1),
            _edit_kernel.arguments(
                words=words,
                tokens=tokens,
                slots=slots,
                rotary_first=rotary_first,
                ids_at=edits.tokens.indices,
                ids=edits.tokens.values,
                id_count=edits.tokens.length,
                slots_at=edits.slots.indices,
                places=edits.slots.values,
                slot_count=edits.slots.length,
                rows_at=edits.rotary_first.indices,
                firsts=edits.rotary_first.values,
                row_count=edits.rotary_first.length,
                BLOCK=BLOCK,
            ),
        )


def place(rows: Tensor, ends: Tensor, size: int, to: DecodeInputs) -> None:
    """Writes the sequences of a decode step, padded to `size`, where its graph reads them."""
    _place_kernel.launch(
        (triton.cdiv(size, BLOCK), 1, 1),
        _place_kernel.arguments(
            rows=rows,
            ends=ends,
            to=to.seqs,
            count=rows.shape[0],
            size=size,
            most=to.most,
            spare_row=to.spare_row,
            BLOCK=BLOCK,
        ),
    )


def commit(tokens: Tensor, rows: Tensor, positions: Tensor, ids: Tensor, logprobs: Tensor, report: Tensor) -> None:
    """Writes sampled `ids` (int64 [n]) to the token table, and ids and the bits of float32 `logprobs` to `report`,
    int32 [2, n]."""
    count = ids.shape[0]
    _commit_kernel.launch(
        (triton.cdiv(count, BLOCK), 1, 1),
        _commit_kernel.arguments(
            tokens=tokens,
            rows=rows,
            positions=positions,
            ids=ids,
            logprobs=logprobs,
            report=report,
            count=count,
            width=tokens.shape[1],
            BLOCK=BLOCK,
        ),
    )


@kernel(numbers=["ids_at", "ids", "id_count", "slots_at", "places", "slot_count", "rows_at", "firsts", "row_count"])
def _edit_kernel(
    words,
    tokens,
    slots,
    rotary_first,
    ids_at,
    ids,
    id_count,
    slots_at,
    places,
    slot_count,
    rows_at,
    firsts,
    row_count,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    table = tl.program_id(1)
    if table == 0:
        _write(words, tokens, ids_at, ids, id_count, at)
    if table == 1:
        _write(words, slots, slots_at, places, slot_count, at)
    if table == 2:
        _write(words, rotary_first, rows_at, firsts, row_count, at)


@triton.jit
def _write(words, table, indices, values, count, at):
    inside = at < count
    index = tl.load(words + indices + at, mask=inside, other=0)
    tl.store(table + index, tl.load(words + values + at, mask=inside), mask=inside)


@kernel(numbers=["count", "size", "most", "spare_row"])
def _place_kernel(rows, ends, to, count, size, most, spare_row, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(to + at, tl.load(rows + at, mask=at < count, other=spare_row), mask=at < size)
    tl.store(to + most + at, tl.load(ends + at, mask=at < count, other=1), mask=at < size)


@kernel(numbers=["size", "stride", "most", "width"])
def _lay_out_kernel(
    seqs,
    tokens,
    slots,
    windows,
    rotary_first,
    made,
    size,
    stride,
    most,
    width,
    WINDOWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    row = tl.load(seqs + at, mask=inside, other=0)
    position = tl.load(seqs + most + at, mask=inside, other=1) - 1
    place = row.to(tl.int64) * width + position
    tl.store(made + at, tl.load(tokens + place, mask=inside), mask=inside)
    tl.store(made + stride + at, position, mask=inside)
    tl.store(made + 2 * stride + at, tl.load(rotary_first + row, mask=inside) + position, mask=inside)
    tl.store(made + 3 * stride + at, tl.load(slots + place, mask=inside), mask=inside)
    if WINDOWS:
        tl.store(made + 4 * stride + at, tl.load(windows + place, mask=inside), mask=inside)


@kernel(numbers=["count", "width"])
def _commit_kernel(tokens, rows, positions, ids, logprobs, report, count, width, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    token = tl.load(ids + at, mask=inside, other=0).to(tl.int32)
    place = tl.load(rows + at, mask=inside, other=0).to(tl.int64) * width + tl.load(
        positions + at, mask=inside, other=0
    )
    tl.store(tokens + place, token, mask=inside)
    tl.store(report + at, token, mask=inside)
    logprob = tl.load(logprobs + at, mask=inside, other=0.0)
    tl.store(report + count + at, logprob.to(tl.int32, bitcast=True), mask=inside)
