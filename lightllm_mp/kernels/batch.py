"""The inputs of one forward step, as the ops take them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from lightllm_mp.kernels.table import Rotation
    from lightllm_mp.kernels.triton.attention.schedule import DecodeShares
    from lightllm_mp.kernels.triton.delta.chunks import DeltaChunks


class StateSave(NamedTuple):
    """A state of linear attention that is kept in the middle of a sequence's new tokens."""

    sequence: int
    """Index of the sequence in the step."""
    tokens: int
    """The state after so many of its new tokens, at least 1."""
    place: int
    """The place of the StatePool where it goes; another one for each save."""


@dataclass(slots=True)
class AttentionSchedule:
    """How a step's attention work is split among GPU programs. The first layer of a kind fills it, the other layers
    read it. On a CPU it stays empty."""

    decode: dict[tuple, DecodeShares] = field(default_factory=dict)
    """Of sequences with one new token, by heads, value width, window, blocks and columns."""
    prefill: dict[int, torch.Tensor] = field(default_factory=dict)
    """Of sequences with more new tokens: int32 [tiles, 2], by queries per tile (see `prefill_tiles`)."""
    delta: DeltaChunks | None = None
    """Of linear attention; None: not yet made."""


@dataclass(slots=True)
class Batch:
    """One step without padding: the new tokens of all sequences, concatenated. All tensors are int32.

    The KV slots of sequence i, in order of position, are `slot_table[rows[i], :context[i]]`; `slots` repeats those of
    its new tokens. With the two host-side numbers an op sizes its work without a read from the device.
    """

    positions: torch.Tensor
    """[tokens]: position of each new token in its sequence."""
    slots: torch.Tensor
    """[tokens]: the KV slot each new token is written to."""
    seq_start: torch.Tensor
    """[sequences + 1]: index of each sequence's first new token; the last entry is the number of tokens."""
    context: torch.Tensor
    """[sequences]: length of each sequence, new tokens included."""
    rows: torch.Tensor
    """[sequences]: the sequence's row in `slot_table`."""
    slot_table: torch.Tensor
    """[rows, longest context]: the table of all rows."""
    max_query: int
    """Upper bound of the new tokens of a sequence."""
    max_context: int
    """Upper bound of `context`."""
    rotary_at: torch.Tensor
    """[tokens]: each new token's row in the rotary tables; its position, unless the model has length classes.
    Where a position has three components (`RopeSpec.sections`), a decoder also takes [tokens, 3]; ops never see it."""
    visible: torch.Tensor | None = None
    """[tokens]: how many leading keys each new token sees in layers with `HeadLayout.image_spans`: up to the end of its
    image, or up to itself. None: the step has no images."""
    rotation: Rotation | None = None
    """Tables of this step alone, which a decoder makes from a `rotary_at` of three components; None: the model's."""
    state_saves: tuple[StateSave, ...] = ()
    """States that the layers of linear attention keep, in ascending order of sequence and tokens. The working states
    are in the places `rows` of the StatePool."""
    window_slots: torch.Tensor | None = None
    window_table: torch.Tensor | None = None
    """`slots` and `slot_table` of the layers with windows, where these have slots of their own; None: they are those of
    all layers. A layer takes the batch `in_windows`; ops never see these."""
    schedule: AttentionSchedule = field(default_factory=AttentionSchedule)
    """Each step has its own: a batch whose tensors are refilled with other lengths needs a new one."""

    @property
    def tokens(self) -> int:
        return self.positions.shape[0]

    @property
    def sequences(self) -> int:
        return self.context.shape[0]

    def in_windows(self) -> Batch:
        """The same step as layers with windows take it."""
        if self.window_slots is None or self.window_table is None:
            return self
        return replace(self, slots=self.window_slots, slot_table=self.window_table)

    @classmethod
    def of(
        cls,
        queries: list[int],
        contexts: list[int],
        rows: list[int],
        slot_table: torch.Tensor,
        window_table: torch.Tensor | None = None,
    ) -> Batch:
        """From host lists: new tokens, total length and table row of each sequence; slots come from the tables."""
        device = slot_table.device
        start = [0]
        positions: list[int] = []
        table_rows: list[int] = []
        for count, context, row in zip(queries, contexts, rows, strict=True):
            positions += range(context - count, context)
            table_rows += [row] * count
            start.append(start[-1] + count)

        def tensor(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        at = tensor(positions)
        new = tensor(table_rows).long(), at.long()
        return cls(
            positions=at,
            slots=slot_table[new],
            seq_start=tensor(start),
            context=tensor(contexts),
            rows=tensor(rows),
            slot_table=slot_table,
            max_query=max(queries, default=0),
            max_context=max(contexts, default=0),
            rotary_at=at,
            window_slots=None if window_table is None else window_table[new],
            window_table=window_table,
        )
