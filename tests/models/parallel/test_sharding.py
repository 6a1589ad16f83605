"""The parts of all ranks make the whole, for every shape of attention, width and vocabulary."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest

from lightllm_mp.errors import ConfigError
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.parallel.sharding import (
    MULTIPLE,
    RowRun,
    ShardCut,
    ShardRows,
    check_ranks,
    cut_of,
    head_share,
    local_model,
    share,
)
from lightllm_mp.models.spec import DeltaSpec, MlaSpec, ModelSpec, MoeSpec

SIZES = (1, 2, 3, 4, 8)
HEADS = ((8, 8), (8, 2), (9, 3), (7, 1), (14, 2), (12, 3), (32, 8), (5, 5), (10, 5))


def model(heads: int = 8, kv_heads: int = 2, **more: object) -> ModelSpec:
    fields = {
        "vocab": 100,
        "hidden": 12,
        "layers": 2,
        "head_dim": 4,
        "intermediate": 40,
        "norm_eps": 1e-5,
        "rope": None,
    }
    return ModelSpec(
        **{"family": "test", "heads": heads, "kv_heads": kv_heads, "max_context": 64, "eos_ids": (), **fields, **more}
    )


def param(target: str, *shape: int) -> Param:
    return Param(target, (Piece("file", shape),))


def part(whole: np.ndarray, cut: ShardCut) -> np.ndarray:
    """The content of a rank: an independent reading of a Cut."""
    local = np.zeros(cut.shape(whole.shape), whole.dtype)
    rows = cut.rows.runs if cut.rows else [RowRun(0, whole.shape[0])]
    columns = cut.columns.runs if cut.columns else [None]
    for row, column in itertools.product(rows, columns):
        source = whole[row.start : row.start + row.length]
        target = local[row.to : row.to + row.length]
        if column is None:
            target[:] = source
        else:
            target[:, column.to : column.to + column.length] = source[:, column.start : column.start + column.length]
    return local


def parts(spec: ModelSpec, target: str, whole: np.ndarray, size: int) -> list[np.ndarray]:
    cuts = [cut_of(param(target, *whole.shape), spec, rank, size) for rank in range(size)]
    return [part(whole, cut) for cut in cuts if cut is not None]


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("size", SIZES)
def test_every_query_head_is_on_one_rank_beside_its_keys(heads: int, kv_heads: int, size: int) -> None:
    if size > heads:
        return
    group, seen = heads // kv_heads, []
    shares = [head_share(model(heads, kv_heads), rank, size) for rank in range(size)]
    for own in shares:
        assert own.heads % own.kv_heads == 0
        assert own[1::2] == shares[0][1::2]  # all ranks run the same shapes
        for i in range(own.queries.length):
            head = own.queries.start + i
            seen.append(head)
            # The kernels take the key-value head to which it belongs.
            assert own.keys.start + i // (own.heads // own.kv_heads) == head // group
            assert i // (own.heads // own.kv_heads) < own.keys.length
    assert seen == list(range(heads))


def test_no_head_is_padded_where_all_divides() -> None:
    for heads, kv_heads, size in ((8, 8, 4), (8, 2, 2), (8, 2, 4), (8, 2, 8), (32, 8, 8)):
        assert head_share(model(heads, kv_heads), 0, size).heads == heads // size


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("size", SIZES[1:])
def test_attention_in_parts_is_the_whole(heads: int, kv_heads: int, size: int) -> None:
    """With values instead of attention's result: o (queries) summed over ranks, and each key beside its queries."""
    if size > heads:
        return
    spec, rng = model(heads, kv_heads), np.random.default_rng(1)
    qkv = rng.integers(-9, 9, (spec.q_size + 2 * spec.kv_size, spec.hidden))
    o = rng.integers(-9, 9, (spec.hidden, spec.q_size))
    x = rng.integers(-9, 9, spec.hidden)

    def attention(qkv: np.ndarray, o: np.ndarray, heads: int, kv_heads: int) -> np.ndarray:
        q, k, v = np.split((qkv @ x).reshape(-1, spec.head_dim), (heads, heads + kv_heads))
        group = heads // kv_heads
        each = [(q[h] * k[h // group]).sum() * v[h // group] for h in range(heads)]
        return o @ np.concatenate(each)

    local = [local_model(spec, rank, size)[0] for rank in range(size)]
    own = zip(parts(spec, "layers.1.qkv", qkv, size), parts(spec, "layers.1.o", o, size), local, strict=True)
    summed = sum(attention(a, b, one.heads, one.kv_heads) for a, b, one in own)
    assert (summed == attention(qkv, o, heads, kv_heads)).all()


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("at", ["layers.0.", "layers.0.shared."])
def test_mlp_in_parts_is_the_whole(size: int, at: str) -> None:
    spec, rng = model(), np.random.default_rng(2)
    gate_up, down = rng.integers(-9, 9, (2 * 40, 12)), rng.integers(-9, 9, (12, 40))
    bias, x = rng.integers(-9, 9, 2 * 40), rng.integers(-9, 9, 12)

    def mlp(gate_up: np.ndarray, bias: np.ndarray, down: np.ndarray) -> np.ndarray:
        gate, up = np.split(gate_up @ x + bias, 2)
        return down @ (np.maximum(gate, 0) * up)

    own = (parts(spec, at + name, whole, size) for name, whole in (("gate_up", gate_up), ("gate_up.bias", bias)))
    each = zip(*own, parts(spec, at + "down", down, size), strict=True)
    assert (sum(mlp(*arrays) for arrays in each) == mlp(gate_up, bias, down)).all()


@pytest.mark.parametrize("size", SIZES[1:])
def test_every_rank_has_a_slice_of_every_expert(size: int) -> None:
    moe = MoeSpec(experts=3, top_k=1, intermediate=40, renormalise=True)
    spec = model(moe=moe)
    gate_up = np.arange(3 * 2 * 40 * 12).reshape(3 * 2 * 40, 12)
    down = np.arange(3 * 12 * 40).reshape(3 * 12, 40)
    width = local_model(spec, 0, size)[0].moe.intermediate
    ups, downs = (
        parts(spec, "layers.0.experts.gate_up", gate_up, size),
        parts(spec, "layers.0.experts.down", down, size),
    )
    ups = [up.reshape(3, 2, width, 12) for up in ups]
    assert (np.concatenate(ups, 2)[:, :, :40].reshape(-1, 12) == gate_up).all()
    assert (np.concatenate([down.reshape(3, 12, width) for down in downs], 2)[..., :40].reshape(-1, 40) == down).all()


@pytest.mark.parametrize("size", SIZES[1:])
def test_latent_attention_is_cut_by_heads(size: int) -> None:
    mla = MlaSpec(q_lora=6, kv_lora=5, nope_dim=3, rope_dim=2, value_dim=4)
    spec = model(9, 9, mla=mla)
    for name, width in (("q_b", 5), ("kv_b", 7)):
        whole = np.arange(9 * width * 6).reshape(9 * width, 6) + 1
        stacked = np.concatenate(parts(spec, f"layers.0.{name}", whole, size))
        assert (stacked[: 9 * width] == whole).all()
        assert not stacked[9 * width :].any()
        assert stacked.shape[0] == size * local_model(spec, 0, size)[0].heads * width
    for name in ("q_a", "kv_a", "kv_a_norm"):
        assert cut_of(param(f"layers.0.{name}", 9, 6), spec, 1, size) == ShardCut()


@pytest.mark.parametrize(("heads", "key_heads"), HEADS)
@pytest.mark.parametrize("size", SIZES[1:])
def test_linear_attention_in_parts_is_the_whole(heads: int, key_heads: int, size: int) -> None:
    """With q * k * v * z * (b + 2 a) instead of the delta rule."""
    delta, rng = DeltaSpec(key_heads=key_heads, value_heads=heads, key_dim=3, value_dim=3), np.random.default_rng(3)
    spec = model(delta=delta, linear_layers=(0,))
    shapes = {
        "qkvz": (delta.channels + delta.value_size, spec.hidden),
        "ba": (2 * heads, spec.hidden),
        "conv": (delta.channels, 4),
        "a_log": (heads,),
        "dt_bias": (heads,),
        "out": (spec.hidden, delta.value_size),
    }
    weights = {name: rng.integers(-5, 5, shape) for name, shape in shapes.items()}
    x = rng.integers(-5, 5, spec.hidden)

    def mixer(w: dict[str, np.ndarray], of: DeltaSpec) -> np.ndarray:
        mixed = w["qkvz"] @ x
        mixed[: of.channels] *= w["conv"].sum(-1)
        bounds = np.cumsum((of.key_heads, of.key_heads, of.value_heads))
        q, k, v, z = np.split(mixed.reshape(-1, 3), bounds)
        b, a = np.split(w["ba"] @ x, 2)
        times = of.value_heads // of.key_heads
        scale = (w["a_log"] * a + w["dt_bias"] + b)[:, None]
        return w["out"] @ (q.repeat(times, 0) * k.repeat(times, 0) * v * z * scale).ravel()

    own = zip(*(parts(spec, "layers.0.delta." + name, whole, size) for name, whole in weights.items()), strict=True)
    local = [local_model(spec, rank, size)[0].delta for rank in range(size)]
    summed = sum(mixer(dict(zip(weights, of, strict=True)), one) for of, one in zip(own, local, strict=True))
    assert (summed == mixer(weights, delta)).all()


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("target", ["embed", "head", "head.bias"])
def test_vocabulary_by_lines(size: int, target: str) -> None:
    spec = model()
    whole = np.arange(1, 101) if target.endswith("bias") else np.arange(1, 301).reshape(100, 3)
    own = parts(spec, target, whole, size)
    assert len({array.shape for array in own}) == 1
    assert own[0].shape[0] % MULTIPLE == 0
    for rank, array in enumerate(own):
        start = local_model(spec, rank, size)[1].vocab_start
        assert (array[: max(0, 100 - start)] == whole[start : start + array.shape[0]]).all()
    assert (np.concatenate(own)[:100] == whole).all()


def test_what_is_added_after_the_sum_is_on_one_rank() -> None:
    for target in ("layers.0.o.bias", "layers.0.down.bias", "layers.0.shared.down.bias"):
        cuts = [cut_of(param(target, 12), model(), rank, 3) for rank in range(3)]
        assert cuts == [ShardCut(), None, None]


def test_biases_of_experts_go_with_them() -> None:
    """A bias after the sum over a group's ranks is on the first of them."""
    spec = model(moe=MoeSpec(experts=4, top_k=2, intermediate=32, renormalise=True, bias=True))
    first, last = param("layers.0.experts.gate_up.bias", 4 * 64), param("layers.0.experts.down.bias", 4 * 12)
    for rank in range(4):
        up, down = (cut_of(one, spec, rank, 4, 2) for one in (first, last))
        assert up is not None
        assert up.shape((256,)) == (2 * 32,)
        assert (down is None) == bool(rank % 2)
        assert down is None or down.rows == ShardRows((RowRun(rank // 2 * 24, 24),), 24)


def test_the_rest_is_everywhere() -> None:
    names = ("norm", "norm.bias", "embed_norm", "positions", "score")
    names += tuple(f"layers.0.{name}" for name in ("input_norm", "router", "shared_gate", "q_norm", "k_norm"))
    assert {cut_of(param(name, 12, 4), model(), 1, 2) for name in names} == {ShardCut()}


def test_norms_of_each_head_go_with_the_heads() -> None:
    spec = model(6, 3, each_head_norm=True, head_norm="layer")
    q, k = np.arange(24).reshape(6, 4), np.arange(12).reshape(3, 4)
    assert [array.tolist() for array in parts(spec, "layers.0.q_norm", q, 2)] == [
        q[:4].tolist(),
        [*q[4:].tolist(), *[[0] * 4] * 2],
    ]
    assert [array.tolist() for array in parts(spec, "layers.0.k_norm", k, 2)] == [
        k[:2].tolist(),
        [*k[2:].tolist(), [0] * 4],
    ]


def test_one_rank_is_the_whole_model() -> None:
    spec = model()
    assert local_model(spec, 0, 1)[0] is spec
    assert cut_of(param("layers.0.down.bias", 12), spec, 0, 1) == ShardCut()


def test_lines_within_a_piece() -> None:
    lines = share(40, 1, 2)  # of 40 rows in two parts of 32: 32 .. 39 and zeros
    assert (lines.runs, lines.count, lines.padded) == ((RowRun(32, 8),), 32, True)
    assert lines.within(0, 30) == []
    assert lines.within(30, 36) == [RowRun(2, 4, 0)]
    assert lines.within(36, 99) == [RowRun(0, 4, 4)]


def test_more_ranks_than_heads_are_refused() -> None:
    check_ranks(model(heads=4), 4)
    with pytest.raises(ConfigError, match="--tp 5: the model has 4 attention heads"):
        check_ranks(model(heads=4), 5)


def test_the_local_model_keeps_what_is_not_cut() -> None:
    spec = model(intermediate=64)
    local, shard = local_model(spec, 1, 2)
    back = msgspec.structs.replace(local, heads=spec.heads, kv_heads=spec.kv_heads, intermediate=64)
    assert back == spec
    assert (shard.rank, shard.size, shard.first_head, shard.all_heads, shard.vocab_start) == (1, 2, 4, 8, 64)
