"""Tensor parallelism: what one rank keeps of each parameter. Imports no torch.

Attention is split by heads. With at least as many key-value heads as ranks, each rank gets the same number of them,
rounded up, with their query heads. Otherwise each key-value head is copied to `size // kv_heads` ranks, which share its
query heads. The last ranks are padded with heads whose queries, keys, values and columns of the output projection are
zero, so the sum over the ranks is exact.

MLPs and experts are split by width (every rank has a slice of every expert), embedding and head by rows (vocabulary).
Both are rounded up to a multiple of MULTIPLE and padded with zeros. What is added after a sum over ranks (the bias of
an output projection) is on rank 0 alone. Everything else is on every rank.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from lightllm_mp.errors import ConfigError
from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.spec import ModelSpec

MULTIPLE = 16
"""Local widths are a multiple of this, because matrix units need aligned rows."""

BY_WIDTH = {"gate_up": 2, "up": 1}
"""Projections into an MLP -> number of blocks of its width that they stack."""


@dataclass(frozen=True, slots=True)
class Shard:
    """What a rank knows besides its local `ModelSpec`, which has the rank's own heads, key-value heads and widths and
    the whole model's `vocab`. The default is the whole model."""

    rank: int = 0
    size: int = 1
    vocab_start: int = 0
    """Token id of the first row of this rank's `embed` and `head`. All ranks have equally many rows."""
    first_head: int = 0
    """Number of this rank's first query head in the whole model."""
    all_heads: int | None = None
    """Query heads of the whole model; None: as many as the spec says."""


class RowRun(NamedTuple):
    """`length` rows from `start` of the whole parameter, which are at `to` in the rank's own."""

    start: int
    length: int
    to: int = 0


@dataclass(frozen=True, slots=True)
class ShardRows:
    """The rows that a rank keeps along one dimension; those that no run fills are zero."""

    runs: tuple[RowRun, ...]
    count: int

    @property
    def padded(self) -> bool:
        return sum(run.length for run in self.runs) < self.count

    def within(self, begin: int, end: int) -> list[RowRun]:
        """The runs' parts in rows begin .. end - 1 of the whole, counted from `begin`."""
        parts = [(max(run.start, begin), min(run.start + run.length, end), run) for run in self.runs]
        return [
            RowRun(first - begin, last - first, run.to + first - run.start)
            for first, last, run in parts
            if last > first
        ]


@dataclass(frozen=True, slots=True)
class ShardCut:
    """A rank's part of a parameter; None: all of that dimension."""

    rows: ShardRows | None = None
    columns: ShardRows | None = None

    @property
    def padded(self) -> bool:
        """It is padded with zeros."""
        return any(part is not None and part.padded for part in (self.rows, self.columns))

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The part's shape, for a parameter of shape `whole`."""
        rows = self.rows.count if self.rows else whole[0]
        return (rows, *whole[1:]) if self.columns is None else (rows, self.columns.count)


WHOLE = ShardCut()


class HeadShare(NamedTuple):
    """A rank's attention heads: its run of the model's, and their number with padding."""

    queries: RowRun
    heads: int
    keys: RowRun
    kv_heads: int


def head_share(spec: ModelSpec, rank: int, size: int) -> HeadShare:
    """The rule in the module's docstring. Latent attention counts as one key-value head per query head."""
    total = spec.heads if spec.mla else spec.kv_heads
    group = spec.heads // total  # queries per key-value head
    copies, kv_heads = max(1, size // total), -(-total // size)
    queries = -(-group // copies)
    first, part = (rank // copies * kv_heads, rank % copies * queries) if copies > 1 else (rank * kv_heads, 0)
    keys = _run(first, kv_heads, total)
    begin = first * group + part
    end = min(first + 1, total) * group if copies > 1 else total * group
    return HeadShare(_run(begin, kv_heads * queries, end), kv_heads * queries, keys, kv_heads)


def share(width: int, rank: int, size: int, multiple: int = MULTIPLE) -> ShardRows:
    """A rank's part of `width` rows."""
    count = _local(width, size, multiple)
    return ShardRows((_run(rank * count, count, width),), count)


def local_model(spec: ModelSpec, rank: int, size: int) -> tuple[ModelSpec, Shard]:
    """The model that one rank computes. Its `vocab` stays the whole model's."""
    if size == 1:
        return spec, Shard()
    heads = head_share(spec, rank, size)
    moe = spec.moe and msgspec.structs.replace(
        spec.moe,
        intermediate=_local(spec.moe.intermediate, size, spec.moe.width_multiple),
        shared_intermediate=_local(spec.moe.shared_intermediate, size),
    )
    local = msgspec.structs.replace(
        spec, heads=heads.heads, kv_heads=heads.kv_heads, intermediate=_local(spec.intermediate, size), moe=moe
    )
    vocab_start = rank * _local(spec.vocab, size)
    return local, Shard(rank, size, vocab_start, heads.queries.start, spec.heads)


def check_ranks(spec: ModelSpec, size: int) -> None:
    """ConfigError when a model is too small for `size` ranks."""
    if size > spec.heads:
        raise ConfigError(
            f"--tp {size}: the model has {spec.heads} attention heads; choose at most as many ranks", param="tp"
        )


def cut_of(param: Param, spec: ModelSpec, rank: int, size: int) -> ShardCut | None:
    """What a rank keeps of a parameter; `spec` is the whole model's. None: nothing."""
    if size == 1:
        return WHOLE
    target = re.sub(r"^layers\.\d+\.", "", param.target)
    name = target.removesuffix(".bias")
    kind = name.removeprefix("shared.").removeprefix("experts.")
    if name in ("o", "down", "shared.down", "experts.down") and target != name:
        return WHOLE if rank == 0 else None
    if name in ("embed", "head"):
        return ShardCut(share(spec.vocab, rank, size))
    if name in ("qkv", "q_norm", "k_norm", "o", "q", "q_b", "kv_b", "sinks"):
        return _by_heads(param, name, spec, head_share(spec, rank, size))
    experts, multiple = _experts(spec) if name.startswith("experts.") else (1, MULTIPLE)
    if kind in BY_WIDTH:
        blocks = BY_WIDTH[kind] * experts
        width = param.shape[0] // blocks
        return ShardCut(_repeated(share(width, rank, size, multiple), blocks, width))
    if kind == "down":
        return ShardCut(columns=share(param.shape[1], rank, size, multiple))
    return WHOLE


def _by_heads(param: Param, name: str, spec: ModelSpec, heads: HeadShare) -> ShardCut:
    queries, keys = ShardRows((heads.queries,), heads.heads), ShardRows((heads.keys,), heads.kv_heads)
    if name == "qkv":
        wholes = (spec.heads, spec.kv_heads, spec.kv_heads)
        return ShardCut(_scaled(_stacked((queries, keys, keys), wholes), spec.head_dim))
    if name == "o":
        return ShardCut(columns=_scaled(queries, param.shape[1] // spec.heads))
    if name in ("q_norm", "k_norm"):
        rows, whole = (queries, spec.heads) if name == "q_norm" else (keys, spec.kv_heads)
        return ShardCut(_scaled(rows, param.shape[0] // whole)) if spec.each_head_norm else WHOLE
    return ShardCut(_scaled(queries, param.shape[0] // spec.heads))


def _experts(spec: ModelSpec) -> tuple[int, int]:
    """Number of experts, and what their width on a rank is a multiple of."""
    assert spec.moe is not None
    return spec.moe.experts, spec.moe.width_multiple


def _local(width: int, size: int, multiple: int = MULTIPLE) -> int:
    """Rows of each rank's part."""
    return -(-width // (size * multiple)) * multiple


def _run(start: int, count: int, end: int) -> RowRun:
    """The part of `count` rows from `start` that lies before `end`."""
    return RowRun(start, max(0, min(count, end - start)))


def _stacked(parts: tuple[ShardRows, ...], wholes: tuple[int, ...]) -> ShardRows:
    """Parts of stacked blocks of `wholes` rows each, as one part of the stack."""
    runs: list[RowRun] = []
    start = to = 0
    for part, whole in zip(parts, wholes, strict=True):
        runs += [RowRun(start + run.start, run.length, to + run.to) for run in part.runs]
        start, to = start + whole, to + part.count
    return ShardRows(tuple(runs), to)


def _repeated(part: ShardRows, blocks: int, whole: int) -> ShardRows:
    return _stacked((part,) * blocks, (whole,) * blocks)


def _scaled(part: ShardRows, width: int) -> ShardRows:
    """Rows of `width` elements each, as elements."""
    return ShardRows(tuple(RowRun(*(width * number for number in run)) for run in part.runs), width * part.count)
