"""Phi 1, 1.5 and 2: parallel attention and MLP, layer norms, partial rotary embedding, biases everywhere."""

from __future__ import annotations

from typing import Any

from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families.common.decoder_weights import TensorNames, decoder
from lightllm_mp.models.families.common.family import Family, activation, refuse, rope_spec, rotary_dim, standard_spec
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys, gguf_spec, plain_weights
from lightllm_mp.models.spec import ModelSpec

NAMES = TensorNames(norm="model.final_layernorm", o="self_attn.dense", up=("mlp.fc1",), down="mlp.fc2")


def read_hf(config: dict[str, Any]) -> ModelSpec:
    refuse(config, qk_layernorm=False)
    head_dim = int(config["hidden_size"]) // int(config["num_attention_heads"])
    return standard_spec(
        config,
        family="phi",
        rope=rope_spec(config, dim=rotary_dim(config, head_dim, 0.5)),
        norm_eps=float(config.get("layer_norm_eps", 1e-5)),
        norm="layer",
        norm_bias=True,
        parallel=True,
        head_bias=True,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        gated=False,
        activation=activation(config.get("hidden_act", "gelu_new")),
    )


def hf_weights(spec: ModelSpec) -> list[Param]:
    return decoder(spec, NAMES)


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    return gguf_spec(keys, family="phi", norm="layer", parallel=True, gated=False, activation="gelu_tanh")


PHI = Family(
    name="phi",
    models="Phi-1, 1.5, 2",
    model_types=("phi",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("phi2",),
    read_gguf=read_gguf,
    gguf_weights=plain_weights,
)
