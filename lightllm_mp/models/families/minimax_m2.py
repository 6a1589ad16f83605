"""MiniMax-M2: queries and keys are normalised over all heads together, experts chosen by corrected sigmoids."""

from __future__ import annotations

from typing import Any

from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families.common.decoder_weights import TensorNames, decoder, qk_norms
from lightllm_mp.models.families.common.expert_rules import with_experts
from lightllm_mp.models.families.common.family import (
    Family,
    activation,
    refuse,
    rope_spec,
    rotary_dim,
    standard_spec,
)
from lightllm_mp.models.families.common.gguf_rules import (
    NAMES,
    GGUFKeys,
    gguf_moe,
    gguf_spec,
    head_norms,
    with_stacked_experts,
)
from lightllm_mp.models.spec import ModelSpec, MoeSpec

THETA = 5e6
"""Base of the rotary embedding if the configuration gives none."""


def read_hf(config: dict[str, Any]) -> ModelSpec:
    refuse(config, scoring_func="sigmoid", use_qk_norm=True, qk_norm_type="per_layer", shared_intermediate_size=0)
    layers, kinds = int(config["num_hidden_layers"]), config.get("attn_type_list") or ()
    refuse({"attn_type_list": list(kinds[:layers])}, attn_type_list=[1] * len(kinds[:layers]))
    head_dim = int(config["head_dim"])
    dim = int(config.get("rotary_dim") or rotary_dim(config, head_dim))
    return standard_spec(
        config,
        family="minimax_m2",
        rope=rope_spec(config, dim=dim, default_theta=THETA),
        head_norm="rms",
        each_head_norm=True,
        joint_head_norm=True,
        activation=activation(config.get("hidden_act", "silu")),
        moe=MoeSpec(
            experts=int(config["num_local_experts"]),
            top_k=int(config["num_experts_per_tok"]),
            intermediate=int(config["intermediate_size"]),
            renormalise=True,
            sigmoid=True,
            correction=bool(config.get("use_routing_bias", True)),
        ),
    )


def hf_weights(spec: ModelSpec) -> list[Param]:
    plain, names = decoder(spec, TensorNames()), ("w1", "w3", "w2")
    block, correction = "block_sparse_moe", "e_score_correction_bias"
    return with_experts(spec, plain, block=block, names=names, correction=correction) + qk_norms(spec)


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    moe = gguf_moe(keys, renormalise=True)
    norms: dict[str, Any] = {"head_norm": "rms", "each_head_norm": True, "joint_head_norm": True}
    return gguf_spec(keys, family="minimax_m2", moe=moe, **norms)


def gguf_weights(spec: ModelSpec, keys: GGUFKeys) -> list[Param]:
    return with_stacked_experts(spec, decoder(spec, NAMES), keys) + head_norms(spec)


MINIMAX_M2 = Family(
    name="minimax_m2",
    models="MiniMax-M2, M2.1",
    model_types=("minimax_m2",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    mtp=True,
    gguf_architectures=("minimax-m2",),
    read_gguf=read_gguf,
    gguf_weights=gguf_weights,
)
