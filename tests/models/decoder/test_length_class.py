"""The rotary frequencies for a prompt's length, and the tables of all of them."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch

from lightllm_mp.models.decoder.length_class import class_bounds, class_firsts
from lightllm_mp.models.decoder.rotary import RotaryTable, geometric
from lightllm_mp.models.spec import ModelSpec, RopeSpec
from tests.models.runner import length_class

QWEN = RopeSpec(theta=1e4, dim=16, scaling="qwen", original_context=32)
LONG = RopeSpec(
    theta=1e4, dim=4, scaling="longrope", original_context=64, short_divisors=(1.0, 2.0), divisors=(1.0, 8.0)
)
SPEC = ModelSpec(
    family="any",
    vocab=8,
    hidden=64,
    layers=1,
    heads=4,
    kv_heads=4,
    head_dim=16,
    intermediate=8,
    norm_eps=1e-6,
    rope=QWEN,
    max_context=200,
    eos_ids=(),
)


def upstream_alpha(length: int, trained: int) -> float:
    """`get_ntk_alpha` of Qwen's own code."""
    return max(2 ** math.ceil(math.log2(length / trained) + 1) - 1, 1)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200])
def test_qwen_takes_the_base_of_the_prompts_length(length):
    table = RotaryTable(QWEN, max_context=200)
    line = length_class(SPEC, length) * 200 + 7
    base = 1e4 * upstream_alpha(length, 32) ** (16 / 14)
    assert torch.allclose(table.cos[line], (7 * geometric(base, 16)).cos(), atol=1e-6)
    assert torch.allclose(table.sin[line], (7 * geometric(base, 16)).sin(), atol=1e-6)


def test_longer_than_served_takes_the_last_class():
    assert length_class(SPEC, 10**6) == length_class(SPEC, 200) == 3


def test_bounds_and_first_lines_agree_with_the_classes():
    assert class_bounds(SPEC) == (32, 64, 128)
    assert class_firsts(SPEC) == (0, 200, 400, 600)
    assert [length_class(SPEC, bound) for bound in class_bounds(SPEC)] == [0, 1, 2]
    assert [length_class(SPEC, bound + 1) for bound in class_bounds(SPEC)] == [1, 2, 3]


def test_longrope_has_two_classes():
    spec = msgspec.structs.replace(SPEC, rope=LONG)
    assert [length_class(spec, length) for length in (1, 64, 65, 200)] == [0, 0, 1, 1]
    table = RotaryTable(LONG, max_context=200)
    assert table.cos.shape == (400, 2)
    assert table.cos[5].tolist() == pytest.approx([math.cos(5.0), math.cos(5 * 0.01 / 2)], abs=1e-6)
    assert table.cos[205].tolist() == pytest.approx([math.cos(5.0), math.cos(5 * 0.01 / 8)], abs=1e-6)


@pytest.mark.parametrize("rope", [None, RopeSpec(theta=1e4, dim=16), msgspec.structs.replace(QWEN, scaling="dynamic")])
def test_other_models_have_one_class(rope):
    spec = msgspec.structs.replace(SPEC, rope=rope)
    assert (length_class(spec, 200), class_bounds(spec), class_firsts(spec)) == (0, (), (0,))


def test_log_n_scale():
    scale = RotaryTable(QWEN, max_context=200, log_n=32).rotation.query_scale
    assert scale is not None
    assert scale.shape == (800,)
    for first in (0, 600):
        assert scale[first : first + 32].tolist() == [1.0] * 32
        assert scale[first + 99].item() == pytest.approx(math.log(100, 32))
    assert RotaryTable(QWEN, max_context=200).rotation.query_scale is None


def test_reserving_changes_no_tensor_once_it_is_enough():
    for table in (RotaryTable(QWEN, max_context=200), RotaryTable(None), RotaryTable(RopeSpec(theta=1e4, dim=8))):
        table.reserve(3000 if table.classes == 1 else 200)
        before = table.rotation
        table.reserve(2000 if table.classes == 1 else 100)
        assert table.rotation is before
