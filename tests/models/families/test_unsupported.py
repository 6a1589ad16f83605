"""Unsupported configuration values are refused, each with one clear line."""

from __future__ import annotations

import json

import pytest

from lightllm_mp.errors import ModelError
from lightllm_mp.models.model_config import read_model_config
from tests.models.golden import GOLDENS

CASES = [
    ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm True"),
    ("starcoder", {"activation_function": "quick_gelu"}, "activation 'quick_gelu'"),
    ("starcoder", {"scale_attn_weights": False}, "scale_attn_weights False"),
    ("stablelm", {"hidden_act": "mish"}, "activation 'mish'"),
    ("stablelm", {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope scaling 'longrope'"),
    ("baichuan_7b", {"hidden_act": "relu6"}, "activation 'relu6'"),
    ("chatglm2", {"post_layer_norm": False}, "post_layer_norm False"),
    ("chatglm2", {"kv_channels": None}, "a value cannot be used"),
    ("gemma2", {"layer_types": ["chunked_attention"] * 4}, "layers of type chunked_attention"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
    ("ministral3", {"rope_parameters": {"llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta without a scaled rotary"),
    ("mistral3", {"text_config": {"model_type": "qwen2"}}, "a language model of type 'qwen2'"),
    ("gemma3_vl", {"text_config": {"model_type": "llama"}}, "a language model of type 'llama'"),
    ("gemma4", {"text_config": {"use_bidirectional_attention": "all"}}, "use_bidirectional_attention 'all'"),
    ("gemma4", {"text_config": {"num_kv_shared_layers": 29}}, "num_kv_shared_layers 29 leaves no layer"),
    ("gemma4", {"text_config": {"vocab_size_per_layer_input": 7}}, "per-layer embeddings of another vocabulary"),
    (
        "gemma4",
        {"text_config": {"per_layer_config": {"0": {"head_dim": 64}}}},
        "per_layer_config is not supported unless",
    ),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method 'noaux_tc'"),
    ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func 'sigmoid'"),
    ("deepseek_v2", {"attention_bias": True}, "attention_bias True"),
    ("deepseek_v3", {"topk_method": "greedy"}, "topk_method 'greedy'"),
    ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func 'softmax'"),
    ("deepseek_v3", {"n_group": 3}, "8 experts cannot be divided into 3 groups"),
    ("deepseek_v3", {"n_group": 8}, "8 experts cannot be divided into 8 groups"),
    ("deepseek_v3", {"topk_group": 1}, "3 experts cannot be chosen from 1 of 4 groups of 2"),
    ("glm4_moe", {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope scaling 'longrope'"),
    ("minimax_m2", {"attn_type_list": [1, 0, 1]}, "attn_type_list [1, 0, 1]"),
    ("minimax_m2", {"qk_norm_type": "per_head"}, "qk_norm_type 'per_head'"),
    ("minimax_m2", {"use_qk_norm": False}, "use_qk_norm False"),
    ("minimax_m2", {"shared_intermediate_size": 24}, "shared_intermediate_size 24"),
    ("deepseek_v2", {"kv_lora_rank": "many"}, "a value cannot be used"),
]


@pytest.mark.parametrize(("folder", "changes", "says"), CASES, ids=lambda x: x if isinstance(x, str) else None)
def test_refused(tmp_path, folder, changes, says):
    config = json.loads((GOLDENS / folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as raised:
        read_model_config(tmp_path)
    assert says in raised.value.message
    assert "\n" not in raised.value.message


def test_the_first_chatglm_is_refused(tmp_path):
    config = {"model_type": "chatglm", "hidden_size": 64, "num_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="first generation"):
        read_model_config(tmp_path)
