"""States of linear attention by place, beside keys and values of the other layers."""

from __future__ import annotations

import msgspec
import pytest
import torch

from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.decoder.state_pool import StatePool
from lightllm_mp.models.spec import DeltaSpec, ModelSpec

SPEC = ModelSpec(
    family="qwen3_next",
    vocab=16,
    hidden=8,
    layers=5,
    heads=2,
    kv_heads=1,
    head_dim=4,
    intermediate=8,
    norm_eps=1e-6,
    rope=None,
    max_context=64,
    eos_ids=(),
    delta=DeltaSpec(key_heads=2, value_heads=4, key_dim=3, value_dim=5),
    linear_layers=(0, 1, 3, 4),
)


def test_places():
    pool = StatePool(SPEC, rows=3, checkpoints=2, dtype=torch.bfloat16)
    assert (pool.spare_row, pool.first_checkpoint) == (3, 4)
    assert pool.recurrent.shape == (4, 6, 4, 3, 5)
    assert pool.conv.shape == (4, 6, 3, 2 * 2 * 3 + 4 * 5)
    assert pool.recurrent.dtype == torch.float32
    assert pool.conv.dtype == torch.bfloat16
    assert sorted(pool.layers) == [0, 1, 3, 4]
    assert pool.layers[3].recurrent.data_ptr() == pool.recurrent[2].data_ptr()
    assert StatePool.place_bytes(SPEC, torch.bfloat16) == (pool.recurrent.nbytes + pool.conv.nbytes) / 6


def test_copy_and_clear():
    pool = StatePool(SPEC, rows=3, checkpoints=2, dtype=torch.float32)
    for place in range(6):
        pool.recurrent[:, place] = float(place)
        pool.conv[:, place] = 10.0 + place
    pool.copy([0, 5], [4, 1])
    assert pool.recurrent[2, :, 0, 0, 0].tolist() == [0, 5, 2, 3, 0, 5]
    assert pool.conv[3, :, 2, 1].tolist() == [10, 15, 12, 13, 10, 15]
    pool.clear([1, 2])
    assert pool.recurrent[1, :, 3, 2, 4].tolist() == [0, 0, 0, 3, 0, 5]
    assert pool.conv[0, :, 0, 0].tolist() == [10, 0, 0, 13, 10, 15]
    pool.copy([], [])
    pool.clear([])


def test_keys_and_values_of_attention_layers_alone():
    pool = KVPool(SPEC, 7, dtype=torch.float32)
    assert pool.data.shape == (1, 2, 8, 1, 4)
    assert list(pool.layers) == [2]
    assert KVPool.token_bytes(SPEC, torch.float32) == 2 * 4 * 4 == SPEC.kv_elements * 4


@pytest.mark.parametrize("change", [{"delta": None, "linear_layers": ()}])
def test_a_model_without(change):
    plain = msgspec.structs.replace(SPEC, **change)
    assert StatePool.place_bytes(plain, torch.float32) == 0
    assert list(KVPool(plain, 7, dtype=torch.float32).layers) == [0, 1, 2, 3, 4]
