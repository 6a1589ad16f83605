"""What surrounds a forward pass on the device: the plan's edits, a decode step's inputs, and the sampled ids."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.triton.launch import Kernel

BLOCK = 1024
PARTS = 4
"""Kinds of work of the edit kernel: token ids, slots, first rotary lines, sequences."""


class DecodeInputs:
    """The sequences of a decode step at a fixed place, so that one CUDA graph serves all steps of a size.

    `seqs` int32 [2, most]: rows, and lengths after the step. Padding is row `spare_row` with length 1.
    """

    def __init__(self, most: int, spare_row: int, device: torch.device) -> None:
        self.most, self.spare_row = most, spare_row
        self.seqs = torch.empty((2, most), dtype=torch.int32, device=device)
        self.seqs[0].fill_(spare_row)
        self.seqs[1].fill_(1)
        self._seq_start = torch.arange(most + 1, dtype=torch.int32, device=device)

    def batch(self, size: int, tokens: Tensor, slots: Tensor, rotary_first: Tensor) -> tuple[Tensor, Batch]:
        """Ids int32 [size] and inputs of the first `size` sequences, read off the tables [rows + 1, width]."""
        made = torch.empty((4, size), dtype=torch.int32, device=tokens.device)
        ids, positions, places, rotary_at = made
        numbers = (size, self.most, tokens.shape[1])
        tensors = (self.seqs, tokens, slots, rotary_first, made)
        _LAY_OUT.launch((triton.cdiv(size, BLOCK), 1, 1), tensors, numbers, (BLOCK,))
        return ids, Batch(
            positions=positions,
            slots=places,
            seq_start=self._seq_start[: size + 1],
            context=self.seqs[1, :size],
            rows=self.seqs[0, :size],
            slot_table=slots,
            max_query=1,
            max_context=tokens.shape[1],
            rotary_at=rotary_at,
        )


def edit(
    words: Tensor, counts: tuple[int, int, int], seqs: int, padded: int, tables: tuple[Tensor, ...], to: DecodeInputs
) -> None:
    """Carries out a plan's edits. `words` int32 holds rows and lengths of `seqs` sequences, then for each of the
    `tables` (tokens, slots, first rotary lines) its `counts` flat indices and as many values.

    The sequences go to `to`, followed by padding up to `padded` of them; 0: they stay where they are.
    """
    most = max(*counts, padded)
    if most:
        numbers = (*counts, seqs, padded, to.most, to.spare_row)
        _EDIT.launch((triton.cdiv(most, BLOCK), PARTS, 1), (words, *tables, to.seqs), numbers, (BLOCK,))


def commit(tokens: Tensor, rows: Tensor, positions: Tensor, ids: Tensor, logprobs: Tensor, report: Tensor) -> None:
    """Writes sampled `ids` (int64 [n]) to their place in the token table, and with the bits of their float32
    `logprobs` to `report`, int32 [2, n]."""
    count = ids.shape[0]
    tensors = (tokens, rows, positions, ids, logprobs, report)
    _COMMIT.launch((triton.cdiv(count, BLOCK), 1, 1), tensors, (count, tokens.shape[1]), (BLOCK,))


@triton.jit(do_not_specialize=["ids", "places", "firsts", "seqs", "padded", "most", "spare_row"])
def _edit_kernel(
    words, tokens, slots, rotary_first, to, ids, places, firsts, seqs, padded, most, spare_row, BLOCK: tl.constexpr
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.program_id(1)
    begin = words + 2 * seqs
    if part == 0:
        tl.store(tokens + tl.load(begin + at, mask=at < ids), tl.load(begin + ids + at, mask=at < ids), mask=at < ids)
    begin += 2 * ids
    if part == 1:
        inside = at < places
        tl.store(slots + tl.load(begin + at, mask=inside), tl.load(begin + places + at, mask=inside), mask=inside)
    begin += 2 * places
    if part == 2:
        inside = at < firsts
        first = tl.load(begin + firsts + at, mask=inside)
        tl.store(rotary_first + tl.load(begin + at, mask=inside), first, mask=inside)
    if part == 3:
        inside = at < padded
        tl.store(to + at, tl.load(words + at, mask=at < seqs, other=spare_row), mask=inside)
        tl.store(to + most + at, tl.load(words + seqs + at, mask=at < seqs, other=1), mask=inside)


@triton.jit(do_not_specialize=["size", "most", "width"])
def _lay_out_kernel(seqs, tokens, slots, rotary_first, made, size, most, width, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    row = tl.load(seqs + at, mask=inside, other=0)
    position = tl.load(seqs + most + at, mask=inside, other=1) - 1
    place = row.to(tl.int64) * width + position
    tl.store(made + at, tl.load(tokens + place, mask=inside), mask=inside)
    tl.store(made + size + at, position, mask=inside)
    tl.store(made + 2 * size + at, tl.load(slots + place, mask=inside), mask=inside)
    tl.store(made + 3 * size + at, tl.load(rotary_first + row, mask=inside) + position, mask=inside)


@triton.jit(do_not_specialize=["count", "width"])
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


_EDIT, _LAY_OUT, _COMMIT = Kernel(_edit_kernel), Kernel(_lay_out_kernel), Kernel(_commit_kernel)
