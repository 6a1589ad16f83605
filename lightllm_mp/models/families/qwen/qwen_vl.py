"""Qwen-VL (Qwen with a tower in the same file), Qwen2.5-VL (Qwen2 with mrope), Qwen3-VL (Qwen3 with DeepStack)."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.expert_rules import with_experts, with_fused_experts
from lightllm_mp.models.families.common.family import INV_FREQ, Family
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys, gguf_spec, plain_weights
from lightllm_mp.models.families.qwen import qwen, qwen2, qwen3, qwen_moe
from lightllm_mp.models.spec import ModelSpec


def read_qwen_vl(config: dict[str, Any]) -> ModelSpec:
    return msgspec.structs.replace(qwen.read_hf(config), family="qwen_vl")


def read_qwen2_5_vl(config: dict[str, Any]) -> ModelSpec:
    """The language model's keys are at the top in older files, in `text_config` in newer ones."""
    return _with_sections(msgspec.structs.replace(qwen2.read_hf(joined(config)), family="qwen2_5_vl"))


def read_qwen2_5_vl_gguf(keys: GGUFKeys) -> ModelSpec:
    """The language model, which is also that of Qwen2-VL."""
    return _with_sections(gguf_spec(keys, family="qwen2_5_vl"))


def read_qwen3_vl(config: dict[str, Any]) -> ModelSpec:
    spec = qwen3.read_hf(joined(config))
    return _with_deepstack(msgspec.structs.replace(spec, family="qwen3_vl"), config)


def read_qwen3_vl_moe(config: dict[str, Any]) -> ModelSpec:
    """Configurations of 2025 leave out `norm_topk_prob`: upstream always renormalises."""
    spec = qwen_moe.read_qwen3({"norm_topk_prob": True, **joined(config)})
    return _with_deepstack(msgspec.structs.replace(spec, family="qwen3_vl_moe"), config)


def read_qwen3_vl_gguf(keys: GGUFKeys) -> ModelSpec:
    return _gguf_deepstack(gguf_spec(keys, family="qwen3_vl", head_norm="rms"), keys)


def read_qwen3_vl_moe_gguf(keys: GGUFKeys) -> ModelSpec:
    spec = msgspec.structs.replace(qwen_moe.read_qwen3_gguf(keys), family="qwen3_vl_moe")
    return _gguf_deepstack(spec, keys)


def _gguf_deepstack(spec: ModelSpec, keys: GGUFKeys) -> ModelSpec:
    """The file does not say that the components of positions take turns."""
    rope = spec.rope and msgspec.structs.replace(spec.rope, interleaved_sections=True)
    return _with_levels(msgspec.structs.replace(spec, rope=rope), keys.integer("n_deepstack_layers", 0))


def qwen3_vl_moe_weights(spec: ModelSpec) -> list[Param]:
    return with_fused_experts(spec, qwen3.hf_weights(spec), transposed=True)


def joined(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of the language model over those at the top."""
    return config | {key: value for key, value in (config.get("text_config") or {}).items() if value is not None}


def _with_deepstack(spec: ModelSpec, config: dict[str, Any]) -> ModelSpec:
    return _with_levels(spec, len(config["vision_config"].get("deepstack_visual_indexes") or ()))


def _with_levels(spec: ModelSpec, levels: int) -> ModelSpec:
    if levels >= spec.layers:
        raise ModelError(f"{levels} levels of DeepStack do not fit a decoder of {spec.layers} layers")
    return _with_sections(msgspec.structs.replace(spec, deepstack=levels))


def _with_sections(spec: ModelSpec) -> ModelSpec:
    if spec.rope is None or not spec.rope.sections:
        raise ModelError("mrope_section is missing in rope_scaling")
    return spec


QWEN_VL = Family(
    name="qwen_vl",
    models="Qwen-VL, Qwen-VL-Chat",
    model_types=(),
    detect=lambda config: config.get("model_type") == "qwen" and "visual" in config,
    read_hf=read_qwen_vl,
    hf_weights=qwen.hf_weights,
    ignore=(INV_FREQ, r"^transformer\.visual\."),
    vision="lightllm_mp.vision.families.qwen_vl:QWEN_VL",
    text=qwen.QWEN.text,
)
"""`model_type` is `qwen`, as for the text models."""

QWEN2_5_VL = Family(
    name="qwen2_5_vl",
    models="Qwen2.5-VL",
    model_types=("qwen2_5_vl",),
    read_hf=read_qwen2_5_vl,
    hf_weights=llama.hf_weights,
    gguf_architectures=("qwen2vl",),
    read_gguf=read_qwen2_5_vl_gguf,
    gguf_weights=plain_weights,
    ignore=(*qwen2.QWEN2.ignore, r"^(model\.)?visual\."),
    spellings=(("model.language_model.", "model."),),
    vision="lightllm_mp.vision.families.qwen2_5_vl:QWEN2_5_VL",
)

QWEN3_VL = Family(
    name="qwen3_vl",
    models="Qwen3-VL 2B to 32B",
    model_types=("qwen3_vl",),
    read_hf=read_qwen3_vl,
    hf_weights=qwen3.hf_weights,
    gguf_architectures=("qwen3vl",),
    read_gguf=read_qwen3_vl_gguf,
    gguf_weights=plain_weights,
    ignore=(*qwen3.QWEN3.ignore, r"^(model\.)?visual\."),
    spellings=(("model.language_model.", "model."),),
    vision="lightllm_mp.vision.families.qwen3_vl:QWEN3_VL",
)

QWEN3_VL_MOE = Family(
    name="qwen3_vl_moe",
    models="Qwen3-VL-30B-A3B, Qwen3-VL-235B-A22B",
    model_types=("qwen3_vl_moe",),
    read_hf=read_qwen3_vl_moe,
    hf_weights=qwen3_vl_moe_weights,
    split_weights=lambda spec: with_experts(spec, qwen3.hf_weights(spec)),
    gguf_architectures=("qwen3vlmoe",),
    read_gguf=read_qwen3_vl_moe_gguf,
    gguf_weights=qwen_moe.gguf_weights,
    ignore=QWEN3_VL.ignore,
    spellings=QWEN3_VL.spellings,
    vision=QWEN3_VL.vision,
)
