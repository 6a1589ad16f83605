"""Configurations of models that tools measure with random weights (`--load-format dummy`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tools.harness.models import GOLDENS

CONTEXT = 33792
"""Context for the longest measured prompts, 32,768 tokens."""
FP8_BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def _llama(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocab: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "eos_token_id": 2,
    }


QWEN3_30B_A3B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "eos_token_id": 151645,
}
QWEN3_5_35B_A3B: dict[str, Any] = {
    "architectures": ["Qwen3_5MoeForCausalLM"],
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "full_attention_interval": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "vocab_size": 248320,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
    "attn_output_gate": True,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "eos_token_id": 248046,
}
GPT_OSS_20B: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 2880,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 201088,
    "max_position_embeddings": 131072,
    "sliding_window": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
    "attention_bias": True,
    "swiglu_limit": 7.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "eos_token_id": 200002,
    "quantization_config": {"quant_method": "mxfp4"},
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama2-7b": _llama(4096, 32, 32, 32, 11008, 32000) | {"rope_theta": 10000.0, "max_position_embeddings": 4096},
    "llama3-8b": _llama(4096, 32, 32, 8, 14336, 128256),
    "qwen3-30b-a3b": QWEN3_30B_A3B,
    "qwen3-30b-a3b-fp8": QWEN3_30B_A3B | {"quantization_config": FP8_BLOCKS},
    "qwen3.5-35b-a3b": QWEN3_5_35B_A3B,
    "gpt-oss-20b": GPT_OSS_20B,
    "tiny": _llama(64, 2, 4, 2, 128, 512) | {"max_position_embeddings": 2048},
}
SMALL = {
    "tiny-moe": "qwen3_moe",
    "tiny-fp8": "deepseek_v3_fp8",
    "tiny-hybrid": "qwen3_5_moe",
    "tiny-mxfp4": "gpt_oss_mxfp4",
}
"""For smoke runs: configurations of tests/goldens."""
NAMES = (*CONFIGS, *SMALL)


def write_config(name: str, folder: Path) -> Path:
    """A folder below `folder` with the configuration of a shape only."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    if name in SMALL:
        shutil.copy(GOLDENS / SMALL[name] / "config.json", place)
    else:
        (place / "config.json").write_text(json.dumps(CONFIGS[name], indent=1))
    return place
