"""Keys that llama.cpp's convert_hf_to_gguf.py writes, by family, without the architecture's name."""

from __future__ import annotations

import math
from typing import Any


def first(config: dict[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def common(config: dict[str, Any]) -> dict[str, Any]:
    """TextModel.set_gguf_parameters."""
    heads = first(config, "num_attention_heads", "n_head")
    return {
        "context_length": first(config, "max_position_embeddings", "n_positions", "model_max_length"),
        "embedding_length": first(config, "hidden_size", "n_embd"),
        "feed_forward_length": first(config, "intermediate_size", "n_inner"),
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads"),
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
        "attention.layer_norm_epsilon": first(config, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
        "expert_count": first(config, "num_local_experts", "num_experts", "n_routed_experts"),
        "expert_used_count": config.get("num_experts_per_tok"),
        "expert_group_count": config.get("n_group"),
        "expert_group_used_count": config.get("topk_group"),
        "attention.key_length": config.get("head_dim"),
        "attention.value_length": config.get("head_dim"),
        "rope.freq_base": _float(first(config, "rope_theta", "rotary_emb_base")),
        **_rope_scaling(config.get("rope_scaling") or {}),
    }


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _rope_scaling(scaling: dict[str, Any]) -> dict[str, Any]:
    kind = scaling.get("rope_type") or scaling.get("type")
    sections = scaling.get("mrope_section")
    found: dict[str, Any] = {"rope.dimension_sections": None if sections is None else [*sections, 0][:4]}
    if kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    if kind == "yarn":
        found["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
        for name in ("beta_fast", "beta_slow"):
            found[f"rope.scaling.yarn_{name}"] = _float(scaling.get(name))
    return found


def head_dim(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def llama_keys(config: dict[str, Any]) -> dict[str, Any]:
    return {**common(config), "vocab_size": config["vocab_size"], "rope.dimension_count": head_dim(config)}


def minicpm_keys(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **common(config),
        "embedding_scale": float(config["scale_emb"]),
        "residual_scale": config["scale_depth"] / config["num_hidden_layers"] ** 0.5,
        "logit_scale": config["hidden_size"] / config["dim_model_base"],
    }


def moe_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Of Qwen2 and 3. The file does not say whether weights are renormalised."""
    return {
        **common(config),
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_feed_forward_length": config.get("shared_expert_intermediate_size"),
    }


def gemma_keys(config: dict[str, Any]) -> dict[str, Any]:
    """All three; without a key rope's base is the library's."""
    rope = {} if config["model_type"] == "gemma3_text" else {"rope.freq_base": None}
    return {
        **common(config),
        "attention.sliding_window": config.get("sliding_window"),
        "attn_logit_softcapping": config.get("attn_logit_softcapping"),
        "final_logit_softcapping": config.get("final_logit_softcapping"),
        **rope,
    }


def gpt_oss_keys(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **common(config),
        "attention.sliding_window": config["sliding_window"],
        "expert_feed_forward_length": config["intermediate_size"],
    }


def phi2_keys(config: dict[str, Any]) -> dict[str, Any]:
    width = config["hidden_size"] // config["num_attention_heads"]
    rotated = int(config["partial_rotary_factor"] * width)
    return {**common(config), "feed_forward_length": 4 * config["hidden_size"], "rope.dimension_count": rotated}


def phi3_keys(config: dict[str, Any]) -> dict[str, Any]:
    trained = config["original_max_position_embeddings"]
    stretch = config["max_position_embeddings"] / trained
    factor = math.sqrt(1 + math.log(stretch) / math.log(trained)) if stretch > 1 else 1.0
    return {
        **common(config),
        "rope.scaling.original_context_length": trained,
        "rope.dimension_count": int(config.get("partial_rotary_factor", 1.0) * head_dim(config)),
        "rope.scaling.attn_factor": factor if config.get("rope_scaling") else None,
        "attention.sliding_window": config.get("sliding_window") or 0,
    }


def stablelm_keys(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **common(config),
        "rope.freq_base": None,
        "rope.dimension_count": int(config["partial_rotary_factor"] * head_dim(config)),
        "use_parallel_residual": config.get("use_parallel_residual", True),
    }


def bigcode_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The converter writes 4 times the hidden size as the width of the MLP; the golden has another width."""
    return {**common(config), "attention.head_count_kv": 1}


def bloom_keys(config: dict[str, Any]) -> dict[str, Any]:
    found = {**common(config), "context_length": config.get("seq_length", config["hidden_size"])}
    return {**found, "feed_forward_length": 4 * config["hidden_size"], "attention.head_count_kv": config["n_head"]}


def deepseek_keys(config: dict[str, Any]) -> dict[str, Any]:
    latent, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    multiplier = (config.get("rope_scaling") or {}).get("mscale_all_dim")
    return {
        **common(config),
        "leading_dense_block_count": config["first_k_dense_replace"],
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": config.get("q_lora_rank"),
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rope,
        "attention.value_length": latent,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rope,
        "attention.value_length_mla": config["v_head_dim"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_weights_norm": config.get("norm_topk_prob") or None,
        "expert_gating_func": 2 if config.get("scoring_func") == "sigmoid" else 1,
        "rope.dimension_count": rope,
        "rope.scaling.yarn_log_multiplier": None if multiplier is None else 0.1 * multiplier,
    }


def glm4_moe_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The layers of multi-token prediction are counted and written."""
    predicting = config["num_nextn_predict_layers"]
    return {
        **common(config),
        "block_count": config["num_hidden_layers"] + predicting,
        "nextn_predict_layers": predicting,
        "rope.dimension_count": int(config["partial_rotary_factor"] * head_dim(config)),
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_weights_norm": config["norm_topk_prob"],
        "expert_gating_func": 2,
    }


def minimax_keys(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **common(config),
        "rope.dimension_count": config["rotary_dim"],
        "expert_feed_forward_length": config["intermediate_size"],
        "expert_gating_func": 2,
    }


def glm_keys(config: dict[str, Any]) -> dict[str, Any]:
    rotated = config["hidden_size"] // config["num_attention_heads"] // 2
    return {
        **common(config),
        "context_length": config["seq_length"],
        "feed_forward_length": config["ffn_hidden_size"],
        "attention.head_count_kv": config["multi_query_group_num"],
        "attention.layer_norm_rms_epsilon": config["layernorm_epsilon"],
        "rope.dimension_count": rotated,
        "rope.freq_base": 10000.0 * config.get("rope_ratio", 1),
    }


def deepstack_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Qwen3VLTextModel; of the mixture too."""
    width = config.get("moe_intermediate_size")
    levels = len(config["vision_config"]["deepstack_visual_indexes"])
    return {**common(config), "n_deepstack_layers": levels, "expert_feed_forward_length": width}
