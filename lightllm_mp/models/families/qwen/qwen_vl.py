"""Qwen-VL (Qwen, with a vision tower in the same file) and Qwen2.5-VL (Qwen2 with mrope)."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.errors import ModelError
from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.family import INV_FREQ, Family
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys, gguf_spec, plain_weights
from lightllm_mp.models.families.qwen import qwen, qwen2
from lightllm_mp.models.spec import ModelSpec


def read_qwen_vl(config: dict[str, Any]) -> ModelSpec:
    return msgspec.structs.replace(qwen.read_hf(config), family="qwen_vl")


def read_qwen2_5_vl(config: dict[str, Any]) -> ModelSpec:
    """The language model's keys are at the top in older files, in `text_config` in newer ones."""
    inner = {key: value for key, value in (config.get("text_config") or {}).items() if value is not None}
    return _with_sections(msgspec.structs.replace(qwen2.read_hf({**config, **inner}), family="qwen2_5_vl"))


def read_qwen2_5_vl_gguf(keys: GGUFKeys) -> ModelSpec:
    """The language model, which is also that of Qwen2-VL."""
    return _with_sections(gguf_spec(keys, family="qwen2_5_vl"))


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
