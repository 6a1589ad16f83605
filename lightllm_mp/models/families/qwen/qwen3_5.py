"""Qwen3.5 and 3.6, dense and mixtures of experts: the hybrid layers of Qwen3-Next, mrope, and a vision tower."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families.common.decoder_weights import linear
from lightllm_mp.models.families.common.expert_rules import with_experts, with_fused_experts
from lightllm_mp.models.families.common.family import INV_FREQ, Family
from lightllm_mp.models.families.qwen.qwen3_next import MTP, hybrid_spec, hybrid_weights
from lightllm_mp.models.families.qwen.qwen_moe import gated_shared_experts, moe_spec, with_shared_expert
from lightllm_mp.models.families.qwen.qwen_vl import joined
from lightllm_mp.models.spec import ModelSpec


def read_hf(config: dict[str, Any]) -> ModelSpec:
    return hybrid_spec(joined(config), family="qwen3_5")


def read_moe(config: dict[str, Any]) -> ModelSpec:
    """Weights of experts are always renormalised; no layer has a plain MLP, so the file gives it no width. Quantised
    releases have the experts one by one."""
    text = joined(config)
    moe = with_shared_expert(moe_spec({**text, "norm_topk_prob": True}, int(text["num_hidden_layers"])), text)
    moe = msgspec.structs.replace(moe, fused_in_file=not text.get("quantization_config"))
    return hybrid_spec(text, family="qwen3_5_moe", moe=moe, intermediate=moe.intermediate)


def hf_weights(spec: ModelSpec) -> list[Param]:
    return hybrid_weights(spec, _projections)


def moe_weights(spec: ModelSpec) -> list[Param]:
    assert spec.moe is not None
    experts = with_fused_experts if spec.moe.fused_in_file else with_experts
    return experts(spec, hf_weights(spec)) + gated_shared_experts(spec)


def split_moe_weights(spec: ModelSpec) -> list[Param]:
    return with_experts(spec, hf_weights(spec)) + gated_shared_experts(spec)


def _projections(spec: ModelSpec, at: str, to: str) -> list[Param]:
    delta = spec.delta
    assert delta is not None
    qkvz = (("in_proj_qkv", delta.channels), ("in_proj_z", delta.value_size))
    ba = (("in_proj_b", delta.value_heads), ("in_proj_a", delta.value_heads))
    return [
        *linear(to + "qkvz", at, qkvz, spec.hidden, False),
        *linear(to + "ba", at, ba, spec.hidden, False),
    ]


QWEN3_5 = Family(
    name="qwen3_5",
    models="Qwen3.5 and 3.6, dense",
    model_types=("qwen3_5", "qwen3_5_text"),
    read_hf=read_hf,
    hf_weights=hf_weights,
    ignore=(INV_FREQ, MTP, r"^model\.visual\."),
    spellings=(("model.language_model.", "model."),),
    vision="lightllm_mp.vision.families.qwen3_vl:QWEN3_VL",
    text_types=("qwen3_5_text",),
)

QWEN3_5_MOE = Family(
    name="qwen3_5_moe",
    models="Qwen3.5-35B-A3B to 397B-A17B, Qwen3.6-35B-A3B",
    model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
    read_hf=read_moe,
    hf_weights=moe_weights,
    split_weights=split_moe_weights,
    ignore=QWEN3_5.ignore,
    spellings=QWEN3_5.spellings,
    vision=QWEN3_5.vision,
    text_types=("qwen3_5_moe_text",),
)
