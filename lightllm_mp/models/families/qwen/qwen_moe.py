"""Qwen2-MoE and Qwen3-MoE; the former has a gated MLP beside its experts."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.decoder_weights import decoder, linear
from lightllm_mp.models.families.common.expert_rules import shared_experts, with_experts
from lightllm_mp.models.families.common.family import Family
from lightllm_mp.models.families.common.gguf_rules import (
    NAMES,
    GGUFKeys,
    gguf_moe,
    gguf_spec,
    head_norms,
    shared_expert,
    with_stacked_experts,
)
from lightllm_mp.models.families.qwen import qwen2, qwen3
from lightllm_mp.models.spec import ModelSpec, MoeSpec


def read_qwen3(config: dict[str, Any]) -> ModelSpec:
    spec = qwen3.read_hf(config)
    return msgspec.structs.replace(spec, family="qwen3_moe", moe=moe_spec(config, spec.layers))


def read_qwen2(config: dict[str, Any]) -> ModelSpec:
    spec = qwen2.read_hf(config)
    return msgspec.structs.replace(
        spec, family="qwen2_moe", moe=with_shared_expert(moe_spec(config, spec.layers), config)
    )


def with_shared_expert(moe: MoeSpec, config: dict[str, Any]) -> MoeSpec:
    width = int(config["shared_expert_intermediate_size"])
    return msgspec.structs.replace(moe, shared_intermediate=width, shared_gate=True)


def moe_spec(config: dict[str, Any], layers: int) -> MoeSpec:
    """Every `decoder_sparse_step`-th layer has experts, except those of `mlp_only_layers`."""
    step, dense = int(config.get("decoder_sparse_step", 1)), config.get("mlp_only_layers") or ()
    return MoeSpec(
        experts=int(config.get("num_experts") or config["num_local_experts"]),
        top_k=int(config["num_experts_per_tok"]),
        intermediate=int(config["moe_intermediate_size"]),
        renormalise=bool(config.get("norm_topk_prob", False)),
        dense_layers=tuple(i for i in range(layers) if i in dense or (i + 1) % step),
    )


def qwen3_weights(spec: ModelSpec) -> list[Param]:
    return with_experts(spec, qwen3.hf_weights(spec))


def qwen2_weights(spec: ModelSpec) -> list[Param]:
    return with_experts(spec, llama.hf_weights(spec)) + gated_shared_experts(spec)


def gated_shared_experts(spec: ModelSpec) -> list[Param]:
    """The MLP beside the experts, and its gate."""
    params: list[Param] = []
    moe = spec.moe
    assert moe is not None
    for i in range(spec.layers):
        if i not in moe.dense_layers:
            at = f"model.layers.{i}.mlp."
            params += linear(f"layers.{i}.shared_gate", at, (("shared_expert_gate", 1),), spec.hidden, False)
    return params + shared_experts(spec, block="mlp.shared_expert")


def read_qwen3_gguf(keys: GGUFKeys) -> ModelSpec:
    """The converter does not write whether weights are renormalised; in all released Qwen3 models they are."""
    return gguf_spec(keys, family="qwen3_moe", head_norm="rms", moe=gguf_moe(keys, renormalise=True))


def read_qwen2_gguf(keys: GGUFKeys) -> ModelSpec:
    """The converter does not write it either; in all released Qwen2 models weights are not renormalised. In the first
    files the width of an expert follows from that of the MLP beside the experts."""
    whole = keys.integer("feed_forward_length")
    moe = gguf_moe(
        keys,
        renormalise=False,
        intermediate=keys.integer("expert_feed_forward_length", whole // keys.count("expert_used_count")),
        shared_intermediate=keys.integer("expert_shared_feed_forward_length", whole),
        shared_gate=True,
    )
    return gguf_spec(keys, family="qwen2_moe", moe=moe)


def gguf_weights(spec: ModelSpec, keys: GGUFKeys) -> list[Param]:
    params = with_stacked_experts(spec, decoder(spec, NAMES), keys)
    return params + head_norms(spec) + shared_expert(spec, keys)


QWEN3_MOE = Family(
    name="qwen3_moe",
    models="Qwen3-30B-A3B, Qwen3-235B-A22B",
    model_types=("qwen3_moe",),
    read_hf=read_qwen3,
    hf_weights=qwen3_weights,
    gguf_architectures=("qwen3moe",),
    read_gguf=read_qwen3_gguf,
    gguf_weights=gguf_weights,
    ignore=qwen3.QWEN3.ignore,
)

QWEN2_MOE = Family(
    name="qwen2_moe",
    models="Qwen1.5-MoE, Qwen2-57B-A14B",
    model_types=("qwen2_moe",),
    read_hf=read_qwen2,
    hf_weights=qwen2_weights,
    gguf_architectures=("qwen2moe",),
    read_gguf=read_qwen2_gguf,
    gguf_weights=gguf_weights,
)
