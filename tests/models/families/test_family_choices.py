"""Families with several networks: what distinguishes these."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.model_config import read_model_config
from tests.models.golden import GOLDENS, check_prompt, prompts
from tests.models.runner import Runner


def spec_of(tmp_path, folder: str, drop: tuple[str, ...] = (), **changes):
    config = json.loads((GOLDENS / folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in drop}))
    return read_model_config(tmp_path)


@pytest.mark.parametrize("folder", ["baichuan_7b", "baichuan_13b", "baichuan2_7b", "baichuan2_13b"])
def test_baichuan(folder):
    spec = read_model_config(GOLDENS / folder)
    assert (spec.alibi, spec.rope is None) == (folder.endswith("13b"),) * 2
    assert spec.family == folder.split("_")[0]
    assert spec.max_context == 4096


def test_baichuan_vocabularies_stand_before_the_tokenizers_class(tmp_path):
    assert spec_of(tmp_path, "baichuan_13b", vocab_size=125696).family == "baichuan2"
    assert spec_of(tmp_path, "baichuan2_13b", vocab_size=64000).family == "baichuan"


def test_baichuan_13b_with_a_number_of_positions(tmp_path):
    spec = spec_of(
        tmp_path,
        "baichuan_13b",
        hidden_size=5120,
        num_attention_heads=40,
        max_position_embeddings=4096,
        vocab_size=64000,
    )
    assert (spec.alibi, spec.rope, spec.max_context) == (True, None, 4096)


def test_rope_ratio_of_chatglm(tmp_path):
    later = spec_of(tmp_path, "chatglm2", rope_ratio=50, _name_or_path="THUDM/chatglm3-6b-32k").rope
    assert (later.theta, later.scaling, later.interleaved) == (500000.0, "default", True)
    second = spec_of(tmp_path, "chatglm2", rope_ratio=16, _name_or_path="THUDM/chatglm2-6b-32k").rope
    assert (second.theta, second.scaling, second.factor, second.interleaved) == (10000.0, "linear", 16.0, True)


def test_layers_of_gemma(tmp_path):
    assert [read_model_config(GOLDENS / "gemma2").window_of(i) for i in range(4)] == [24, 0, 24, 0]
    assert [read_model_config(GOLDENS / "gemma3").window_of(i) for i in range(4)] == [24, 24, 0, 24]
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert [spec_of(tmp_path, "gemma3", layer_types=kinds).window_of(i) for i in range(4)] == [0, 24, 24, 0]


def test_gemma3s_positions_hold_the_scaling(tmp_path):
    spec = spec_of(tmp_path, "gemma3", rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert (spec.max_context, spec.rope.factor, spec.local_rope.scaling) == (32768, 8.0, "default")


def test_deepseeks_factor_counts_without_renormalising_only(tmp_path):
    assert spec_of(tmp_path, "deepseek_v2", routed_scaling_factor=16.0).moe.scale == 16.0
    assert spec_of(tmp_path, "deepseek_v2", routed_scaling_factor=16.0, norm_topk_prob=True).moe.scale == 1.0


def test_deepseeks_dense_layers(tmp_path):
    moe = spec_of(tmp_path, "deepseek_v2", num_hidden_layers=7, first_k_dense_replace=2, moe_layer_freq=2).moe
    assert moe.dense_layers == (0, 1, 3, 5)


def test_bloom_with_the_other_keys(tmp_path):
    other = {"n_embed": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
    spec = spec_of(tmp_path, "bloom", ("hidden_size", "n_head", "n_layer"), **other)
    assert spec == read_model_config(GOLDENS / "bloom")


def test_bloom_with_prefixed_names_and_a_repeated_head(tmp_path):
    spec_of(tmp_path, "bloom")
    tensors = load_file(GOLDENS / "bloom" / "model.safetensors")
    prefixed = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    save_file({**prefixed, "lm_head.weight": tensors["word_embeddings.weight"].clone()}, tmp_path / "model.safetensors")
    runner, prompt = Runner(load_model(tmp_path, dtype=torch.float32)), prompts("bloom")[3]
    check_prompt(prompt, runner.prefill(runner.sequence(), prompt.ids))


def test_starcoder_without_a_head_in_the_file(tmp_path):
    spec_of(tmp_path, "starcoder")
    tensors = load_file(GOLDENS / "starcoder" / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    runner, prompt = Runner(load_model(tmp_path, dtype=torch.float32)), prompts("starcoder")[3]
    check_prompt(prompt, runner.prefill(runner.sequence(), prompt.ids))
