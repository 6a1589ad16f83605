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
    """How a step's attention work is split among GPU programs. The first layer of a kind fills it, the other layers
    read it. On a CPU it stays empty."""

    decode: dict[tuple, DecodeShares] = field(default_factory=dict)
    """Of sequences with one new token, by heads, value width, window, blocks and columns."""
    prefill: dict[int, torch.Tensor] = field(default_factory=dict)
    """Of sequences with more new tokens: int32 [tiles, 2], by queries per tile (see `prefill_tiles`)."""


@dataclass(slots=True)
class Batch:
    """One step without padding: the new tokens of all sequences, concatenated. All tensors are int32.

    The KV slots of sequence i, in order of position, are `slot_table[rows[i], :context[i]]`; `slots` has those of its
    new tokens too. The host-side numbers let an op size its work without waiting for the device.
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
    """[sequences]: the sequence's row in `slot_table`."""
    slot_table: torch.Tensor
    """[rows, longest context]: the table of all rows."""
    max_query: int
    """An upper bound of a sequence's new tokens."""
    max_context: int
    """An upper bound of `context`."""
    rotary_at: torch.Tensor
    """[tokens]: each new token's row in the rotary tables; its position, except in models that count differently.
    Where a position has three components (`RopeSpec.sections`), a decoder takes [tokens, 3]; ops never see that."""
    rotation: Rotation | None = None
    """Tables for this step only, which replace the model's: a decoder makes them from a `rotary_at` [tokens, 3]."""
    schedule: AttentionSchedule = field(default_factory=AttentionSchedule)
    """Every step has its own: a batch whose tensors are filled again with other lengths needs a new one."""

    @property
    def tokens(self) -> int:
        return self.positions.shape[0]

    @property
    def sequences(self) -> int:
        return self.context.shape[0]

    @classmethod
    def of(cls, queries: list[int], contexts: list[int], rows: list[int], slot_table: torch.Tensor) -> Batch:
        """From host lists: new tokens, total length and row of each sequence. Slots are read from the table."""
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
