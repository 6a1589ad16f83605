"""Llama 1, 2 and 3, and models with the same network: Yi, SmolLM, and Mistral as a GGUF file."""

from __future__ import annotations

from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families.common.decoder_weights import TensorNames, decoder
from lightllm_mp.models.families.common.family import Family, standard_spec
from lightllm_mp.models.families.common.gguf_rules import (
    NAMES,
    GGUFKeys,
    gguf_moe,
    gguf_spec,
    rotary_order,
    with_stacked_experts,
)
from lightllm_mp.models.spec import ModelSpec


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """From a `config.json` with Llama's keys. Llama 1 lacks `num_key_value_heads` and `rope_theta`."""
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"activation {config['hidden_act']!r} is not supported for this family")
    bias = bool(config.get("attention_bias", False))
    mlp_bias = bool(config.get("mlp_bias", False))
    return standard_spec(config, family="llama", qkv_bias=bias, o_bias=bias, mlp_bias=mlp_bias)


def hf_weights(spec: ModelSpec) -> list[Param]:
    """Weight rules under the Hugging Face names."""
    return decoder(spec, TensorNames())


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    """From a GGUF file of architecture `llama`: also Mistral, Mixtral, SmolLM and InternLM."""
    moe = gguf_moe(keys, renormalise=True) if keys.get("expert_count") else None
    return gguf_spec(keys, family="llama" if moe is None else "mixtral", moe=moe)


def gguf_weights(spec: ModelSpec, keys: GGUFKeys) -> list[Param]:
    """Weight rules under the GGUF names."""
    params = decoder(spec, NAMES, rotary_order(spec))
    return params if spec.moe is None else with_stacked_experts(spec, params, keys)


def _yi_old_weights(spec: ModelSpec) -> list[Param]:
    return decoder(spec, TensorNames(input_norm="ln1", post_norm="ln2"))


LLAMA = Family(
    name="llama",
    models="Llama 1, 2, 3.x, Yi, SmolLM",
    model_types=("llama",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("llama",),
    read_gguf=read_gguf,
    gguf_weights=gguf_weights,
)

YI_OLD = Family(
    name="yi",
    models="first releases of Yi",
    model_types=("Yi",),
    read_hf=read_hf,
    hf_weights=_yi_old_weights,
    gguf_written_as="llama",
)
"""The first releases of Yi: Llama with other names of the norms."""
