"""MiniCPM 1B and 2B: Llama with a scaled embedding, scaled residual branches and a scaled head."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from lightllm_mp.errors import ModelError
from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.family import Family
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys, gguf_spec
from lightllm_mp.models.spec import ModelSpec

SCALE_2B, DEPTH_2B, BASE_2B = 12.0, 1.4, 256
"""`scale_emb`, `scale_depth` and `dim_model_base` of MiniCPM 2B."""


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """The head is tied unless the configuration says otherwise; released ones do not."""
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


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    """The oldest files lack the three factors; those of MiniCPM 2B are taken."""
    keys.refuse_unless("expert_count", 0)
    hidden, layers = keys.integer("embedding_length"), keys.count("block_count")
    return gguf_spec(
        keys,
        family="minicpm",
        embed_scale=keys.number("embedding_scale", SCALE_2B),
        residual_scale=keys.number("residual_scale", DEPTH_2B / math.sqrt(layers)),
        logit_scale=1 / keys.number("logit_scale", hidden / BASE_2B),
    )


MINICPM = Family(
    name="minicpm",
    models="MiniCPM 1B and 2B",
    model_types=("minicpm",),
    read_hf=read_hf,
    hf_weights=llama.hf_weights,
    gguf_architectures=("minicpm",),
    read_gguf=read_gguf,
    gguf_weights=llama.gguf_weights,
)
