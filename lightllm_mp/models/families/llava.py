"""LLaVA 1.5: Llama with images, in the layout of the original files and in that of Hugging Face."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.family import INV_FREQ, Family, nested_text
from lightllm_mp.models.spec import ModelSpec

LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Defaults of transformers' LlamaConfig: LLaVA's files leave out keys with these values."""


def read_original(config: dict[str, Any]) -> ModelSpec:
    """The keys of a Llama stand beside those of the images."""
    return msgspec.structs.replace(llama.read_hf(config), family="llava_orig")


def read_nested(config: dict[str, Any]) -> ModelSpec:
    """`text_config`, completed by LlamaConfig's defaults; a few keys may be outside it."""
    text = nested_text(config, LLAMA_DEFAULTS, ("llama",))
    return msgspec.structs.replace(llama.read_hf(text), family="llava_hf")


LLAVA_ORIG = Family(
    name="llava_orig",
    models="LLaVA-1.5 in its original layout",
    gguf_written_as="llama",
    model_types=(),
    detect=lambda config: bool(config.get("mm_vision_tower")),
    read_hf=read_original,
    hf_weights=llama.hf_weights,
    ignore=(INV_FREQ, r"^model\.mm_projector\.", r"^model\.vision_tower\.", r"^model\.image_newline$"),
    vision="lightllm_mp.vision.families.llava:ORIGINAL",
)
"""`model_type` is `llava`, `llava_llama` or `llama`."""

LLAVA_HF = Family(
    name="llava_hf",
    models="LLaVA-1.5 in the Hugging Face layout",
    gguf_written_as="llama",
    model_types=("llava",),
    read_hf=read_nested,
    hf_weights=llama.hf_weights,
    ignore=(INV_FREQ, r"^(model\.)?(vision_tower|multi_modal_projector)\."),
    spellings=(
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("model.language_model.", "model."),
    ),
    vision="lightllm_mp.vision.families.llava:HUGGING_FACE",
)
