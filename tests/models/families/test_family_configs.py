"""Configurations of single families that do more than rename keys."""

from __future__ import annotations

import json

import pytest

from lightllm_mp.errors import ModelError
from lightllm_mp.models.decoder.length_class import class_bounds, class_firsts
from lightllm_mp.models.model_config import read_model_config
from lightllm_mp.models.spec import PoolingSpec
from tests.models.golden import GOLDENS


def spec_of(tmp_path, family: str, generation: dict | None = None, **changes):
    config = {**json.loads((GOLDENS / family / "config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return read_model_config(tmp_path)


def test_qwen_end_of_text(tmp_path):
    assert spec_of(tmp_path, "qwen", vocab_size=151936).eos_ids == (151643,)
    chat = {"chat_format": "chatml", "eos_token_id": 151643}
    assert spec_of(tmp_path, "qwen", chat, vocab_size=151936).eos_ids == (151643, 151645, 151644)
    assert spec_of(tmp_path, "qwen", chat).eos_ids == ()


def test_ends_inside_and_outside_the_text_config(tmp_path):
    assert spec_of(tmp_path, "gemma4").eos_ids == (1, 106)
    assert spec_of(tmp_path, "mistral3").eos_ids == (2,)
    assert spec_of(tmp_path, "gemma3_vl", {"eos_token_id": [1, 50]}).eos_ids == (1, 106, 50)
    assert spec_of(tmp_path, "gemma3_vl", {"eos_token_id": 7}, eos_token_id="absent").eos_ids == (1, 7)


def test_qwen_length_classes(tmp_path):
    spec = spec_of(tmp_path, "qwen", seq_length=8192, max_position_embeddings=32768)
    assert class_bounds(spec) == (8192, 16384)
    assert class_firsts(spec) == (0, 32768, 65536)
    plain = spec_of(tmp_path, "qwen", use_dynamic_ntk=False, use_logn_attn=False)
    assert (class_bounds(plain), class_firsts(plain), plain.log_n_scale) == ((), (0,), 0)


def test_internlm_rotary(tmp_path):
    spec = spec_of(tmp_path, "internlm", rotary={"base": 300000, "type": "origin"}, bias=False)
    assert (spec.rope.theta, spec.rope.scaling, spec.qkv_bias, spec.o_bias) == (300000.0, "default", False, False)
    spec = spec_of(tmp_path, "internlm", rotary={"base": 10000, "type": "dynamic", "scaling_factor": 2.0})
    assert (spec.rope.scaling, spec.rope.factor, spec.max_context) == ("dynamic", 2.0, 4096)


def test_minicpm_is_tied_by_default(tmp_path):
    spec = spec_of(tmp_path, "minicpm")
    assert (spec.tied, spec.embed_scale, spec.logit_scale) == (True, 12.0, 0.25)
    assert spec.residual_scale == pytest.approx(0.7)
    with pytest.raises(ModelError, match="mixtures of experts"):
        spec_of(tmp_path, "minicpm", num_experts=8)


@pytest.mark.parametrize(
    ("changes", "window", "layers"),
    [
        ({}, None, ()),
        ({"use_sliding_window": True}, None, ()),
        ({"use_sliding_window": True, "max_window_layers": 2}, 32768, (0, 1)),
        ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 64}, 64, ()),
    ],
)
def test_qwen2_window(tmp_path, changes, window, layers):
    spec = spec_of(tmp_path, "qwen2", **changes)
    assert (spec.window, spec.global_layers) == (window, layers)


def test_layers_without_experts(tmp_path):
    changes = {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    assert spec_of(tmp_path, "qwen3_moe", **changes).moe.dense_layers == (0, 2, 3, 4)


def test_internlm2_reward_without_its_token(tmp_path):
    spec = spec_of(tmp_path, "internlm2_reward", reward_token_id="absent")
    assert spec.pooling == PoolingSpec(task="score", width=1, head="linear")
