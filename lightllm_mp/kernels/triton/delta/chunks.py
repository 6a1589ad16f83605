"""Cuts a step's tokens into chunks of the delta rule."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightllm_mp.kernels.batch import Batch

CHUNK = 64
"""Tokens of a chunk, within which the delta rule is a few products of matrices."""
NOWHERE = -1


class DeltaChunks(NamedTuple):
    """int32 tensors of a step with more than single tokens; made without a read from the device."""

    tiles: Tensor
    """[at least all chunks, 3]: first token, number of tokens (0: no chunk), place that keeps the state behind it."""
    first: Tensor
    """[sequences + 1]: the sequence's first chunk; the last entry is the number of chunks."""
    token_rows: Tensor
    """[tokens, 2]: row of the token's sequence, index among its new tokens."""
    apart: bool
    """Sequences with one new token have no chunks: the decode kernel takes them."""


def chunks_of(batch: Batch) -> DeltaChunks:
    """The chunks of all layers of a step."""
    if batch.schedule.delta is None:
        batch.schedule.delta = _chunks(batch)
    return batch.schedule.delta


def _chunks(batch: Batch) -> DeltaChunks:
    start, device = batch.seq_start, batch.seq_start.device
    apart, counts = not batch.state_saves, start.diff()
    owner = torch.arange(batch.sequences, device=device).repeat_interleave(counts, output_size=batch.tokens)
    index = torch.arange(batch.tokens, dtype=torch.int32, device=device) - start[owner]
    # A segment ends where a sequence ends or a state is kept; of two that end at one token the kept one comes first.
    ends, places = start[1:], torch.full_like(start[1:], NOWHERE)
    if batch.state_saves:
        saves = _upload(torch.tensor(batch.state_saves, dtype=torch.int32), device)
        ends = torch.cat((start[saves[:, 0]] + saves[:, 1], ends))
        ends, order = ends.sort(stable=True)
        places = torch.cat((saves[:, 2], places))[order]
    begins = torch.cat((start[:1], ends[:-1]))
    parts = (ends - begins + CHUNK - 1) // CHUNK
    if apart:
        parts = parts.masked_fill(counts == 1, 0)
    last = parts.cumsum(0, dtype=torch.int32)
    number = torch.arange(batch.tokens // CHUNK + len(ends), dtype=torch.int32, device=device)
    segment = torch.searchsorted(last, number, right=True).clamp(max=len(ends) - 1)
    token = begins[segment] + (number - last[segment] + parts[segment]) * CHUNK
    there = number < last[-1]
    size = (ends[segment] - token).clamp(max=CHUNK)
    kept = torch.where(number + 1 == last[segment], places[segment], NOWHERE)
    before = torch.cat((torch.zeros_like(last[:1]), last))
    return DeltaChunks(
        torch.stack((token, torch.where(there, size, 0), kept), 1).int(),
        before[torch.searchsorted(ends.contiguous(), start, right=True)],
        torch.stack((batch.rows[owner], index), 1).int(),
        apart,
    )


def _upload(values: Tensor, device: torch.device) -> Tensor:
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
