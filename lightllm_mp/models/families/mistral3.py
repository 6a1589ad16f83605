"""Mistral Small 3.1 and later, Ministral 3, Devstral 2 (mistral3), and Pixtral 12B: Mistral with a Pixtral tower."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.errors import ModelError
from lightllm_mp.models.families import llama, mistral
from lightllm_mp.models.families.common.family import INV_FREQ, Family, nested_text
from lightllm_mp.models.spec import ModelSpec

MISTRAL_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Defaults of transformers' MistralConfig; those of Ministral3Config differ in sizes that its files always give."""
SPELLINGS = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)
IGNORE = (INV_FREQ, r"^(model\.)?(vision_tower|multi_modal_projector)\.")


def read_ministral3(config: dict[str, Any]) -> ModelSpec:
    """Queries grow with the position (`ModelSpec.query_growth`); there is no window."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    growth = float(scaling.get("llama_4_scaling_beta") or 0.0)
    spec = mistral.read_hf(config, window=None)
    if growth and not (spec.rope and spec.rope.original_context):
        raise ModelError("llama_4_scaling_beta without a scaled rotary embedding is not supported")
    return msgspec.structs.replace(spec, family="ministral3", query_growth=growth)


def read_mistral3(config: dict[str, Any]) -> ModelSpec:
    text = nested_text(config, MISTRAL_DEFAULTS, ("mistral", "ministral3"))
    spec = read_ministral3(text) if text.get("model_type") == "ministral3" else mistral.read_hf(text)
    return msgspec.structs.replace(spec, family="mistral3")


def read_pixtral(config: dict[str, Any]) -> ModelSpec:
    spec = mistral.read_hf(nested_text(config, MISTRAL_DEFAULTS, ("mistral",)))
    return msgspec.structs.replace(spec, family="pixtral")


def _is_pixtral(config: Any) -> bool:
    """Pixtral in the Hugging Face layout has LLaVA's `model_type`."""
    vision = config.get("vision_config")
    return config.get("model_type") == "llava" and isinstance(vision, dict) and vision.get("model_type") == "pixtral"


MINISTRAL3 = Family(
    name="ministral3",
    models="Ministral 3, Devstral 2 (text)",
    model_types=("ministral3",),
    read_hf=read_ministral3,
    hf_weights=llama.hf_weights,
)

MISTRAL3 = Family(
    name="mistral3",
    models="Mistral Small 3.1, 3.2, Ministral 3 (images)",
    model_types=("mistral3",),
    read_hf=read_mistral3,
    hf_weights=llama.hf_weights,
    ignore=IGNORE,
    spellings=SPELLINGS,
    vision="lightllm_mp.vision.families.pixtral:MISTRAL3",
)

PIXTRAL = Family(
    name="pixtral",
    models="Pixtral 12B",
    model_types=(),
    detect=_is_pixtral,
    read_hf=read_pixtral,
    hf_weights=llama.hf_weights,
    ignore=IGNORE,
    spellings=SPELLINGS,
    vision="lightllm_mp.vision.families.pixtral:PIXTRAL",
)
