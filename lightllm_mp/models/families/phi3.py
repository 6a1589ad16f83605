"""Phi-3 and Phi-4 mini: Llama with fused projections; long variants divide each rotary frequency (longrope)."""

from __future__ import annotations

import math
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families.common.decoder_weights import TensorNames, decoder
from lightllm_mp.models.families.common.family import (
    GGUF_FREQS,
    INV_FREQ,
    Family,
    activation,
    rope_spec,
    rotary_dim,
    standard_spec,
)
from lightllm_mp.models.families.common.gguf_rules import (
    GGUFKeys,
    gguf_rope,
    gguf_spec,
    plain_weights,
    rope_divisors,
)
from lightllm_mp.models.families.common.text_half import TextHalf
from lightllm_mp.models.spec import ModelSpec, RopeSpec

NAMES = TensorNames(qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",))


def read_hf(config: dict[str, Any]) -> ModelSpec:
    head_dim = int(config["hidden_size"]) // int(config["num_attention_heads"])
    rope, window = _rope(config, rotary_dim(config, head_dim)), config.get("sliding_window")
    return standard_spec(
        config,
        family="phi3",
        head_dim=head_dim,
        rope=rope,
        norm_eps=float(config.get("rms_norm_eps", 1e-5)),
        window=None if window is None else int(window),
        activation=activation(config.get("hidden_act", "silu")),
    )


def _rope(config: dict[str, Any], dim: int) -> RopeSpec:
    """`longrope`, once called `su` (arXiv 2402.13753): prompts beyond the training length have other divisors."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (scaling.get("rope_type") or scaling.get("type")) not in ("longrope", "su"):
        return rope_spec(config, dim=dim)
    context = int(config["max_position_embeddings"])
    trained = scaling.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    trained = int(trained or context)
    long, short = (tuple(float(x) for x in scaling[name]) for name in ("long_factor", "short_factor"))
    if len(long) != dim // 2 or len(short) != dim // 2:
        raise ModelError(f"rope scaling has {len(long)} and {len(short)} factors, expected are {dim // 2}")
    amplitude = scaling.get("attention_factor")
    return RopeSpec(
        theta=float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0),
        dim=dim,
        scaling="longrope",
        original_context=trained,
        amplitude=_amplitude(context / trained, trained) if amplitude is None else float(amplitude),
        divisors=long,
        short_divisors=short,
    )


def _amplitude(stretch: float, trained: int) -> float:
    return math.sqrt(1 + math.log(stretch) / math.log(trained)) if stretch > 1 else 1.0


def hf_weights(spec: ModelSpec) -> list[Param]:
    return decoder(spec, NAMES)


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    return gguf_spec(keys, family="phi3", rope=_gguf_rope(keys))


def _gguf_rope(keys: GGUFKeys) -> RopeSpec:
    """Two tensors hold the divisors of `longrope`, if the model has it."""
    if not keys.has("rope_factors_long.weight"):
        return gguf_rope(keys, dim=keys.head_dim)
    dim, context = keys.integer("rope.dimension_count", keys.head_dim), keys.integer("context_length")
    trained = keys.integer("rope.scaling.original_context_length")
    return RopeSpec(
        theta=keys.number("rope.freq_base", 10000.0),
        dim=dim,
        scaling="longrope",
        original_context=trained,
        amplitude=keys.number("rope.scaling.attn_factor", _amplitude(context / trained, trained)),
        divisors=rope_divisors(keys, "rope_factors_long.weight", dim),
        short_divisors=rope_divisors(keys, "rope_factors_short.weight", dim),
    )


PHI3 = Family(
    name="phi3",
    models="Phi-3, Phi-3.5 (longrope)",
    model_types=("phi3",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("phi3",),
    read_gguf=read_gguf,
    gguf_weights=plain_weights,
    ignore=(INV_FREQ, r"^lm_head\.weight$"),
    gguf_ignore=(GGUF_FREQS, r"^rope_factors_(long|short)\.weight$"),
    text=TextHalf(gguf_no_rstrip=("<s>", "<|endoftext|>")),
)
"""Files of tied models may contain an unused head."""
