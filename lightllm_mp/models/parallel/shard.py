"""Which part of a model one tensor-parallel rank computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """What a rank must know besides its local `ModelSpec`, whose heads, key-value heads and widths are the rank's own
    and whose `vocab` is the whole model's. The default is the whole model."""

    rank: int = 0
    size: int = 1
    vocab_start: int = 0
    """The id that the first line of this rank's `embed` and `head` stands for. All ranks have equally many lines."""
    first_head: int = 0
    """Number of this rank's first query head in the whole model."""
    all_heads: int | None = None
    """Query heads of the whole model; None: as many as the spec says."""
