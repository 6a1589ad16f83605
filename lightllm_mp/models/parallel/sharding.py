"""Tensor and expert parallelism: what one rank keeps of each parameter. Imports no torch.

Attention is split by heads. With at least as many key-value heads as ranks, each rank gets the same number of them,
rounded up, with their query heads. Otherwise each key-value head is copied to `size // kv_heads` ranks, which share its
query heads. The last ranks are padded with heads whose queries, keys, values and columns of the output projection are
zero, so the sum over the ranks is exact. Linear attention is split in the same way, its value heads as the query heads
of their key heads.

MLPs are split by width, embedding and head by rows (vocabulary). Both are rounded up to a multiple of MULTIPLE and
padded with zeros. What is added after a sum over ranks (the bias of an output projection) is on rank 0 alone.
Everything else is on every rank.

Experts are split by width too (every rank has a slice of every expert), unless ranks are expert-parallel: each of `ep`
groups of ranks holds a run of whole experts, and a rank of the group a slice of each; the runs' lengths differ by at
most one. Routers are on every rank. A shared expert is split by width over all ranks, like a dense MLP: it is computed
once, and the sum over all ranks that ends a layer adds its parts too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from lightllm_mp.errors import ConfigError
from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.spec import DeltaSpec, GlobalHeads, ModelSpec, MoeSpec

MULTIPLE = 16
"""Local widths are a multiple of this, because matrix units need aligned rows."""

BY_WIDTH = {"gate_up": 2, "up": 1}
"""Projections into an MLP -> number of blocks of its width that they stack."""


@dataclass(frozen=True, slots=True)
class Shard:
    """What a rank knows besides its local `ModelSpec`, which has the rank's own heads, key-value heads and widths and
    the whole model's `vocab` and number of experts. The default is the whole model."""

    rank: int = 0
    size: int = 1
    vocab_start: int = 0
    """Token id of the first row of this rank's `embed` and `head`. All ranks have equally many rows."""
    first_head: int = 0
    """Number of this rank's first query head in the whole model."""
    all_heads: int | None = None
    """Query heads of the whole model; None: as many as the spec says."""
    all_kv_heads: int | None = None
    """The same for key-value heads, those on several ranks counted for each."""
    first_expert: int = 0
    """Number of this rank's first expert in the whole model."""
    own_experts: int | None = None
    """Experts of this rank; None: all of the model."""


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
    return _head_share(spec.heads, spec.heads if spec.mla else spec.kv_heads, rank, size)


def delta_share(delta: DeltaSpec, rank: int, size: int) -> HeadShare:
    """A rank's heads of linear attention: `queries` are its value heads, `keys` its key heads."""
    return _head_share(delta.value_heads, delta.key_heads, rank, size)


def _head_share(heads: int, total: int, rank: int, size: int) -> HeadShare:
    """Of `heads` query heads and `total` key-value heads."""
    group = heads // total  # queries per key-value head
    copies, kv_heads = max(1, size // total), -(-total // size)
    queries = -(-group // copies)
    first, part = (rank // copies * kv_heads, rank % copies * queries) if copies > 1 else (rank * kv_heads, 0)
    keys = _run(first, kv_heads, total)
    begin = first * group + part
    end = min(first + 1, total) * group if copies > 1 else total * group
    return HeadShare(_run(begin, kv_heads * queries, end), kv_heads * queries, keys, kv_heads)


def _copied_heads(spec: ModelSpec, size: int) -> int:
    """Key-value heads of all ranks, without padding."""
    return sum(head_share(spec, rank, size).keys.length for rank in range(size))


class ExpertShare(NamedTuple):
    """A rank's run of experts, and its slice of their width: number `part` of `parts`."""

    first: int
    experts: int
    part: int
    parts: int


def expert_share(experts: int, rank: int, size: int, ep: int) -> ExpertShare:
    """The rule in the module's docstring; `ep` divides `size`."""
    parts = size // ep
    begin, end = (experts * group // ep for group in (rank // parts, rank // parts + 1))
    return ExpertShare(begin, end - begin, rank % parts, parts)


def share(width: int, rank: int, size: int, multiple: int = MULTIPLE) -> ShardRows:
    """A rank's part of `width` rows."""
    count = _local(width, size, multiple)
    return ShardRows((_run(rank * count, count, width),), count)


def local_model(spec: ModelSpec, rank: int, size: int, ep: int = 1) -> tuple[ModelSpec, Shard]:
    """The model that one rank computes. Its `vocab` and number of experts stay the whole model's."""
    if size == 1:
        return spec, Shard()
    heads = head_share(spec, rank, size)
    experts = spec.moe and expert_share(spec.moe.experts, rank, size, ep)
    moe = spec.moe and msgspec.structs.replace(
        spec.moe,
        intermediate=_local(spec.moe.intermediate, size // ep, spec.moe.width_multiple),
        shared_intermediate=_local(spec.moe.shared_intermediate, size),
    )
    local = msgspec.structs.replace(
        spec,
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        intermediate=_local(spec.intermediate, size),
        kv_shared_intermediate=_local(spec.kv_shared_intermediate, size),
        global_heads=spec.global_heads and _local_heads(spec, spec.global_heads, rank, size),
        moe=moe,
        delta=spec.delta and _local_delta(spec.delta, rank, size),
    )
    vocab_start = rank * _local(spec.vocab, size)
    shard = Shard(rank, size, vocab_start, heads.queries.start, spec.heads, _copied_heads(spec, size))
    return local, replace(shard, first_expert=experts.first, own_experts=experts.experts) if experts else shard


def _local_heads(spec: ModelSpec, whole: GlobalHeads, rank: int, size: int) -> GlobalHeads:
    heads = head_share(msgspec.structs.replace(spec, heads=whole.heads, kv_heads=whole.kv_heads), rank, size)
    return msgspec.structs.replace(whole, heads=heads.heads, kv_heads=heads.kv_heads)


def _local_delta(delta: DeltaSpec, rank: int, size: int) -> DeltaSpec:
    own = delta_share(delta, rank, size)
    return msgspec.structs.replace(delta, key_heads=own.kv_heads, value_heads=own.heads)


def check_ranks(spec: ModelSpec, size: int, ep: int = 1) -> None:
    """ConfigError when a model is too small for `size` ranks, of which `ep` groups hold whole experts."""
    if size > spec.heads:
        raise ConfigError(
            f"--tp {size}: the model has {spec.heads} attention heads; choose at most as many ranks", param="tp"
        )
    if ep > 1 and spec.moe is None:
        raise ConfigError(f"--ep {ep}: the model has no experts", param="ep")
    if spec.moe is not None and ep > spec.moe.experts:
        raise ConfigError(f"--ep {ep}: the model has {spec.moe.experts} experts; choose at most as many", param="ep")


def cut_of(param: Param, spec: ModelSpec, rank: int, size: int, ep: int = 1) -> ShardCut | None:
    """What a rank keeps of a parameter; `spec` is the whole model's. None: nothing."""
    if size == 1:
        return WHOLE
    target = re.sub(r"^layers\.\d+\.", "", param.target)
    spec = spec.at(int(param.target.split(".")[1])) if target != param.target else spec
    name = target.removesuffix(".bias")
    kind = name.removeprefix("shared.")
    if name in ("o", "down", "shared.down") and target != name:
        return WHOLE if rank == 0 else None
    if name in ("embed", "head"):
        return ShardCut(share(spec.vocab, rank, size))
    if name.startswith("delta.") and spec.delta is not None:
        return _by_delta_heads(name.removeprefix("delta."), spec.delta, delta_share(spec.delta, rank, size))
    if name in ("qkv", "q_gate", "q_norm", "k_norm", "o", "q", "q_b", "kv_b", "sinks"):
        return _by_heads(param, name, spec, head_share(spec, rank, size))
    if name.startswith("experts.") and spec.moe is not None:
        own = expert_share(spec.moe.experts, rank, size, ep)
        if target == "experts.down.bias" and own.part:
            return None
        return _by_experts(param, name.removeprefix("experts."), spec.moe, own)
    if kind in BY_WIDTH:
        blocks = BY_WIDTH[kind]
        return ShardCut(_repeated(share(param.shape[0] // blocks, rank, size), blocks, param.shape[0] // blocks))
    if kind == "down":
        return ShardCut(columns=share(param.shape[1], rank, size))
    return WHOLE


def _by_heads(param: Param, name: str, spec: ModelSpec, heads: HeadShare) -> ShardCut:
    queries, keys = ShardRows((heads.queries,), heads.heads), ShardRows((heads.keys,), heads.kv_heads)
    if name == "qkv":
        if param.shape[0] == spec.q_size:  # the layer reads keys and values of another one
            return ShardCut(_scaled(queries, spec.head_dim))
        wholes = (spec.heads, spec.kv_heads, spec.kv_heads)
        return ShardCut(_scaled(_stacked((queries, keys, keys), wholes), spec.head_dim))
    if name == "o":
        return ShardCut(columns=_scaled(queries, param.shape[1] // spec.heads))
    if name in ("q_norm", "k_norm"):
        rows, whole = (queries, spec.heads) if name == "q_norm" else (keys, spec.kv_heads)
        return ShardCut(_scaled(rows, param.shape[0] // whole)) if spec.each_head_norm else WHOLE
    return ShardCut(_scaled(queries, param.shape[0] // spec.heads))


def _by_delta_heads(name: str, delta: DeltaSpec, own: HeadShare) -> ShardCut:
    values, keys = ShardRows((own.queries,), own.heads), ShardRows((own.keys,), own.kv_heads)
    parts = (_scaled(keys, delta.key_dim),) * 2 + (_scaled(values, delta.value_dim),) * 2
    wholes = (delta.key_size, delta.key_size, delta.value_size, delta.value_size)
    return {
        "qkvz": ShardCut(_stacked(parts, wholes)),
        "conv": ShardCut(_stacked(parts[:3], wholes[:3])),
        "ba": ShardCut(_repeated(values, 2, delta.value_heads)),
        "a_log": ShardCut(values),
        "dt_bias": ShardCut(values),
        "norm": WHOLE,
        "out": ShardCut(columns=parts[3]),
    }[name]


def _by_experts(param: Param, kind: str, moe: MoeSpec, own: ExpertShare) -> ShardCut:
    """Of the projection `kind` of all experts, or of its biases."""
    rows, multiple = param.shape[0] // moe.experts, moe.width_multiple
    first, count = own.first * rows, own.experts * rows
    run = None if count == param.shape[0] else ShardRows((RowRun(first, count),), count)
    if own.parts == 1:
        return ShardCut(run)
    if kind == "down":
        whole = len(param.shape) == 1  # a bias
        return ShardCut(run, None if whole else share(param.shape[1], own.part, own.parts, multiple))
    blocks = BY_WIDTH[kind]
    slices = _repeated(share(rows // blocks, own.part, own.parts, multiple), blocks * own.experts, rows // blocks)
    return ShardCut(ShardRows(tuple(part._replace(start=part.start + first) for part in slices.runs), slices.count))


def _local(width: int, size: int, multiple: int = MULTIPLE) -> int:
    """Rows of each rank's part."""
    return width if size == 1 else -(-width // (size * multiple)) * multiple


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
