"""The copy of shards from a checkpoint: plain tensors, slices of a file, and 4-bit weights."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lightllm_mp.kernels.quantised import GroupedWeight, ScaledWeight
from lightllm_mp.kernels.reference.quantised import expanded
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.parallel.shard_copy import part_of_packed, place, place_scaled
from lightllm_mp.models.parallel.sharding import RowRun, ShardCut, ShardRows, cut_of, share
from lightllm_mp.models.spec import ModelSpec
from tests.models.golden import GOLDENS

SPEC = ModelSpec(
    family="test",
    vocab=96,
    hidden=64,
    layers=1,
    heads=8,
    kv_heads=4,
    head_dim=8,
    intermediate=96,
    norm_eps=1e-5,
    rope=None,
    max_context=64,
    eos_ids=(),
)
QKV = (64, 32, 32)
"""Lines of the pieces."""


class Rank:
    """A rank of a group that computes nothing."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def cut(target: str, rows: int, columns: int, rank: int, size: int) -> ShardCut:
    found = cut_of(Param(f"layers.0.{target}", (Piece("x", (rows, columns)),)), SPEC, rank, size)
    assert found is not None
    return found


def packed(rows: int, columns: int, group: int) -> GroupedWeight:
    made, groups = torch.Generator().manual_seed(rows), -(-columns // group)
    return GroupedWeight(
        torch.randint(0, 16, (rows, columns), generator=made, dtype=torch.uint8),
        torch.rand((rows, groups), generator=made),
        torch.randint(0, 16, (rows, groups), generator=made, dtype=torch.uint8),
        (torch.randperm(columns, generator=made) % groups).int(),
    )


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("target", "pieces", "columns"),
    [
        ("qkv", QKV, 64),
        ("qkv", (sum(QKV),), 64),
        ("gate_up", (96, 96), 64),
        ("gate_up", (192,), 64),
        ("down", (64,), 96),
    ],
)
def test_packed_parts_stand_for_the_same_weights(target: str, pieces: tuple[int, ...], columns: int, size: int) -> None:
    if target != "qkv" and size == 4:
        return  # 96 / 4 is no multiple of 16: such weights are expanded
    for rank in range(size):
        part = cut(target, sum(pieces), columns, rank, size)
        assert not part.padded
        plain = torch.zeros(part.shape((sum(pieces), columns)))
        joined = torch.full_like(plain, torch.nan)
        first = 0
        for rows in pieces:
            weight = packed(rows, columns, 16)
            place(expanded(weight, torch.float32), plain, part, first, rows)
            own = part_of_packed(weight, part, first)
            assert own is not None
            joined[own[0] : own[0] + own[1].codes.shape[0]] = expanded(own[1], torch.float32)
            first += rows
        assert torch.equal(joined, plain)


def test_a_piece_of_which_nothing_is_kept() -> None:
    """Experts one by one, or a projection that other ranks share."""
    part = ShardCut(ShardRows((RowRun(10, 5, 0),), 5))
    assert part_of_packed(packed(10, 32, 16), part, 0) is None
    target = torch.zeros(5, 32)
    place(torch.ones(10, 32), target, part, 0, 10)
    assert not target.any()


def test_slices_of_a_file_are_what_is_read(tmp_path) -> None:
    whole = torch.arange(48 * 32, dtype=torch.float32).view(48, 32)
    save_file({"x": whole}, tmp_path / "file.safetensors")
    part = ShardCut(ShardRows((RowRun(4, 6, 1), RowRun(30, 3, 8)), 12), share(32, 1, 2))
    expected, found = torch.zeros(12, 16), torch.zeros(12, 16)
    place(whole, expected, part, 0, 48)
    with safe_open(tmp_path / "file.safetensors", "pt") as file:
        place(file.get_slice("x"), found, part, 0, 48)
    assert torch.equal(found, expected)
    assert torch.equal(expected[1:7], whole[4:10, 16:])


class Counting:
    """Checkpoint reads, in bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.elements = 0
        original = torch.Tensor.copy_

        def counted(target: torch.Tensor, source: torch.Tensor, *rest: object, **named: object) -> torch.Tensor:
            self.elements += source.numel()
            return original(target, source, *rest, **named)

        monkeypatch.setattr(torch.Tensor, "copy_", counted)


@pytest.mark.parametrize("folder", ["internlm2", "qwen2", "baichuan_7b"])
def test_a_rank_copies_its_part_and_no_more(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    decoder = load_model(GOLDENS / folder, dtype=torch.float32, group=Rank(1, 2))  # type: ignore[arg-type]
    assert counting.elements * 4 <= decoder.weight_bytes * 1.01
    stored = sum(x.numel() for x in load_file(GOLDENS / folder / "model.safetensors").values())
    assert decoder.weight_bytes < 0.6 * stored * 4


def scaled(rows: int, columns: int, group: int) -> ScaledWeight:
    made = torch.Generator().manual_seed(rows)
    values = torch.randint(-127, 128, (rows, columns), generator=made, dtype=torch.int8)
    return ScaledWeight(values, torch.rand((rows, -(-columns // group) if group else 1), generator=made), group)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("target", "pieces", "columns"),
    [("qkv", QKV, 64), ("gate_up", (96, 96), 64), ("down", (64,), 96), ("o", (64,), 64)],
)
@pytest.mark.parametrize("groups", [(40, 40, 40), (0, 24, 36)])
def test_scaled_parts_stand_for_the_same_weights(target, pieces, columns, size, groups) -> None:
    """Also with a cut between inputs that share a scale, with pieces of different groups, and with padding."""
    for rank in range(size):
        part = cut(target, sum(pieces), columns, rank, size)
        shape = part.shape((sum(pieces), columns))
        plain, joined, first = torch.zeros(shape), None, 0
        for rows, group in zip(pieces, groups, strict=False):
            piece = scaled(rows, columns, group)
            place(expanded(piece, torch.float32), plain, part, first, rows)
            joined = place_scaled(piece, joined, shape, part, first, "cpu")
            first += rows
        assert joined is not None
        assert torch.equal(expanded(joined, torch.float32), plain)
