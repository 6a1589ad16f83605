"""MiniCPM 1B and 2B: Llama with a scaled embedding, scaled residual branches and a scaled head."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from lightllm_mp.errors import ModelError
from lightllm_mp.models.families import llama
from lightllm_mp.models.families.base import Family
from lightllm_mp.models.spec import ModelSpec


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """The head is tied unless the configuration says otherwise, which real ones never do."""
    if config.get("num_experts"):
        raise ModelError("mixtures of experts are not supported for this family")
    spec = llama.read_hf(config)
    return msgspec.structs.replace(
        spec,
        family="minicpm",
        tied=bool(config.get("tie_word_embeddings", True)),
        embed_scale=float(config.get("scale_emb", 1.0)),
        residual_scale=float(config.get("scale_depth", 1.0)) / math.sqrt(spec.layers),
        logit_scale=float(config.get("dim_model_base", 1.0)) / spec.hidden,
    )


MINICPM = Family(name="minicpm", model_types=("minicpm",), read_hf=read_hf, hf_weights=llama.hf_weights)
