"""GLM-4.5 to 4.7: DeepSeek-V3's experts behind plain attention, or (Flash) behind DeepSeek's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families import deepseek_v2
from lightllm_mp.models.families.common.decoder_weights import TensorNames, decoder, qk_norms
from lightllm_mp.models.families.common.expert_rules import shared_experts, with_experts
from lightllm_mp.models.families.common.family import Family, activation, rope_spec, rotary_dim, standard_spec
from lightllm_mp.models.families.common.gguf_rules import (
    NAMES,
    GGUFKeys,
    gguf_moe,
    gguf_spec,
    head_norms,
    shared_expert,
    shared_width,
    with_stacked_experts,
)
from lightllm_mp.models.families.deepseek_v3 import sigmoid_moe
from lightllm_mp.models.spec import ModelSpec


def read_hf(config: dict[str, Any]) -> ModelSpec:
    head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))
    return standard_spec(
        config,
        family="glm4_moe",
        rope=rope_spec(config, dim=rotary_dim(config, head_dim, 0.5)),
        qkv_bias=bool(config.get("attention_bias", False)),
        head_norm="rms" if config.get("use_qk_norm") else "",
        activation=activation(config.get("hidden_act", "silu")),
        moe=sigmoid_moe(config),
    )


def hf_weights(spec: ModelSpec) -> list[Param]:
    return with_experts(spec, decoder(spec, TensorNames())) + shared_experts(spec) + qk_norms(spec)


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    return gguf_spec(
        keys,
        family="glm4_moe",
        head_norm="rms" if keys.has("blk.0.attn_q_norm.weight") else "",
        moe=gguf_moe(keys, renormalise=True, shared_intermediate=shared_width(keys)),
    )


def gguf_weights(spec: ModelSpec, keys: GGUFKeys) -> list[Param]:
    params = decoder(spec, replace(NAMES, post_norm="post_attention_norm"))
    return with_stacked_experts(spec, params, keys) + shared_expert(spec, keys) + head_norms(spec)


def read_lite(config: dict[str, Any]) -> ModelSpec:
    kinds = config.get("mlp_layer_types")
    dense = tuple(i for i, kind in enumerate(kinds) if kind == "dense") if kinds else (0,)
    if not kinds and "first_k_dense_replace" in config:
        dense = deepseek_v2.dense_layers(config)
    return deepseek_v2.latent_spec(config, family="glm4_moe_lite", moe=sigmoid_moe(config, dense_layers=dense))


GLM4_MOE = Family(
    name="glm4_moe",
    models="GLM-4.5, 4.6, 4.7, Air",
    model_types=("glm4_moe",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    mtp=True,
    gguf_architectures=("glm4moe",),
    read_gguf=read_gguf,
    gguf_weights=gguf_weights,
)

GLM4_MOE_LITE = Family(
    name="glm4_moe_lite",
    models="GLM-4.7-Flash (latent attention)",
    model_types=("glm4_moe_lite",),
    read_hf=read_lite,
    hf_weights=deepseek_v2.hf_weights,
    mtp=True,
    gguf_written_as="deepseek2",
)
