"""The inputs of one forward step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightllm_mp.kernels.table import Rotation
    from lightllm_mp.kernels.triton.attention.schedule import DecodeShares


@dataclass(slots=True)
class AttentionSchedule:
    """How a step's attention is shared out among the programs of a GPU: the first layer of a kind fills it, the others
    read it. Empty on a CPU."""

    decode: dict[tuple, DecodeShares] = field(default_factory=dict)
    """Of sequences with one new token, by what it depends on beside the lengths: heads, window, blocks."""
    prefill: dict[int, torch.Tensor] = field(default_factory=dict)
    """Of sequences with more: tiles int32 [tiles, 2], by the queries of a tile (see `prefill_tiles`)."""


@dataclass(slots=True)
class Batch:
    """One step without padding: the new tokens of all sequences, concatenated. All tensors are int32.

    The KV slots of sequence i, in order of position, are `slot_table[rows[i], :context[i]]`; those of its new tokens
    are in `slots` too. The host-side numbers let an op size its work without asking the device.
    """

    positions: torch.Tensor
    """[tokens]: position of each new token in its sequence."""
    slots: torch.Tensor
    """[tokens]: the KV slot each new token is written to."""
    seq_start: torch.Tensor
    """[sequences + 1]: where each sequence's new tokens begin; the last entry is the number of tokens."""
    context: torch.Tensor
    """[sequences]: length of each sequence, new tokens included."""
    rows: torch.Tensor
    """[sequences]: the sequence's line in `slot_table`."""
    slot_table: torch.Tensor
    """[rows, longest context]: the device's whole table."""
    max_query: int
    """Most new tokens of any sequence, at least."""
    max_context: int
    """Longest `context`, at least."""
    rotary_at: torch.Tensor
    """[tokens]: each new token's line in the rotary tables; its position, but for models that count differently.
    Where a position has three components (`RopeSpec.sections`), a decoder also takes [tokens, 3]; ops never see it."""
    rotation: Rotation | None = None
    """Tables of this step alone, in place of the model's: a decoder makes them of a `rotary_at` of three components."""
    schedule: AttentionSchedule = field(default_factory=AttentionSchedule)
    """Its own for each step: where the same tensors are filled anew, they make a new batch."""

    @property
    def tokens(self) -> int:
        return self.positions.shape[0]

    @property
    def sequences(self) -> int:
        return self.context.shape[0]

    @classmethod
    def of(cls, queries: list[int], contexts: list[int], rows: list[int], slot_table: torch.Tensor) -> Batch:
        """From host lists: new tokens, total length and table line of each sequence; slots are read off the table."""
        device = slot_table.device
        start = [0]
        positions: list[int] = []
        lines: list[int] = []
        for count, context, row in zip(queries, contexts, rows, strict=True):
            positions += range(context - count, context)
            lines += [row] * count
            start.append(start[-1] + count)

        def tensor(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        at = tensor(positions)
        return cls(
            positions=at,
            slots=slot_table[tensor(lines).long(), at.long()],
            seq_start=tensor(start),
            context=tensor(contexts),
            rows=tensor(rows),
            slot_table=slot_table,
            max_query=max(queries, default=0),
            max_context=max(contexts, default=0),
            rotary_at=at,
        )
