"""Gemma 4: plain norms, values normalised, heads by kind of layer, keys and values shared, per-layer embeddings."""

from __future__ import annotations

import math
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import decoder, linear, norm
from lightllm_mp.models.families.common.expert_rules import fused
from lightllm_mp.models.families.common.family import (
    INV_FREQ,
    Family,
    activation,
    global_layers,
    nested_text,
    rope_spec,
    standard_spec,
)
from lightllm_mp.models.families.gemma import BRANCH_NAMES
from lightllm_mp.models.spec import GlobalHeads, ModelSpec, MoeSpec, PerLayerSpec

DEFAULTS: dict[str, Any] = {
    "vocab_size": 262144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "hidden_size_per_layer_input": 256,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
}
"""Defaults of transformers' Gemma4TextConfig."""
ROPE = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
PERIOD = 6
SOFT_TOKENS = 280


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """From the text model's keys, alone or under `text_config`."""
    images = "text_config" in config
    text = nested_text(config if images else {**config, "text_config": config}, DEFAULTS, ("gemma4_text",))
    sees = text.get("use_bidirectional_attention")
    if sees not in (None, "vision"):
        raise ModelError(f"use_bidirectional_attention {sees!r} is not supported for this family")
    whole, shared = _global_layers(text), int(text.get("num_kv_shared_layers") or 0)
    _check_shared(int(text["num_hidden_layers"]), shared, whole)
    heads = _global_heads(text, whole)
    bias, ropes = bool(text.get("attention_bias", False)), text.get("rope_parameters") or ROPE
    width = int(text.get("hidden_size_per_layer_input") or 0)
    if width and int(text.get("vocab_size_per_layer_input") or text["vocab_size"]) != int(text["vocab_size"]):
        raise ModelError("per-layer embeddings of another vocabulary than the model's are not supported")
    wide = bool(text.get("use_double_wide_mlp")) and shared > 0
    return standard_spec(
        text,
        family="gemma4" if images else "gemma4_text",
        rope=rope_spec({**text, "rope_parameters": ropes["full_attention"]}, dim=heads.head_dim),
        local_rope=rope_spec({**text, "rope_parameters": ropes["sliding_attention"]}, dim=int(text["head_dim"])),
        max_context=int(text["max_position_embeddings"]),
        embed_scale=math.sqrt(int(text["hidden_size"])),
        per_layer=PerLayerSpec(width=width, image_id=int(text.get("pad_token_id") or 0)) if width else None,
        branch_norms=True,
        layer_scale=True,
        activation=activation(text.get("hidden_activation") or "gelu_pytorch_tanh"),
        window=int(text["sliding_window"]),
        global_layers=whole,
        global_heads=heads,
        kv_shared=shared,
        kv_shared_intermediate=2 * int(text["intermediate_size"]) if wide else 0,
        keys_are_values=bool(text.get("attention_k_eq_v")),
        moe=_mixture(text) if text.get("enable_moe_block") else None,
        head_norm="rms",
        value_norm=True,
        attention_scale=1.0,
        qkv_bias=bias,
        o_bias=bias,
        logit_softcap=float(text.get("final_logit_softcapping") or 0.0),
        image_span=int(config.get("vision_soft_tokens_per_image") or SOFT_TOKENS) if images and sees else 0,
        image_span_local=True,
    )


def _global_heads(text: dict[str, Any], whole: tuple[int, ...]) -> GlobalHeads:
    """From the keys of the released files, or from `per_layer_config`, which newer transformers write instead."""
    said = {"head_dim": text["global_head_dim"]}
    if text.get("attention_k_eq_v") and text.get("num_global_key_value_heads"):
        said["num_key_value_heads"] = text["num_global_key_value_heads"]
    if by_layer := text.get("per_layer_config"):
        said, *others = by_layer.values()
        known = {"head_dim", "num_key_value_heads"}
        if any(other != said for other in others) or {*map(int, by_layer)} != {*whole} or not said.keys() <= known:
            raise ModelError(
                "per_layer_config is not supported unless it gives the heads of all layers without a window"
            )
    return GlobalHeads(
        heads=int(text["num_attention_heads"]),
        kv_heads=int(said.get("num_key_value_heads") or text["num_key_value_heads"]),
        head_dim=int(said.get("head_dim") or text["head_dim"]),
    )


def _mixture(text: dict[str, Any]) -> MoeSpec:
    return MoeSpec(
        experts=int(text["num_experts"]),
        top_k=int(text["top_k_experts"]),
        intermediate=int(text["moe_intermediate_size"]),
        renormalise=True,
        beside=True,
    )


def _global_layers(text: dict[str, Any]) -> tuple[int, ...]:
    """Layers without a window; upstream always makes the last layer one."""
    count = int(text["num_hidden_layers"])
    return tuple(sorted({*global_layers(text, tuple(range(PERIOD - 1, count, PERIOD))), count - 1}))


def _check_shared(layers: int, shared: int, whole: tuple[int, ...]) -> None:
    own, rest = range(layers - shared), range(layers - shared, layers)
    for kind in (True, False):
        if any((i in whole) == kind for i in rest) and not any((i in whole) == kind for i in own):
            raise ModelError(
                f"num_kv_shared_layers {shared} leaves no layer whose keys and values the others could read"
            )


def hf_weights(spec: ModelSpec) -> list[Param]:
    """Layers that read another layer's keys and values project queries only; if keys are values, their rows are there
    twice."""
    params = [param for param in decoder(spec, BRANCH_NAMES) if not param.target.endswith((".qkv", ".qkv.bias"))]
    for i in range(spec.layers):
        params += _layer(spec.at(i), i)
    if spec.per_layer is not None:
        width, at = spec.layers * spec.per_layer.width, "model."
        params += linear("per_layer_embed", at, (("embed_tokens_per_layer", spec.vocab),), width, False)
        params += linear("per_layer_project", at, (("per_layer_model_projection", width),), spec.hidden, False)
        params += _vector("per_layer_norm", "model.per_layer_projection_norm.weight", spec.per_layer.width)
    return params


def _layer(s: ModelSpec, i: int) -> list[Param]:
    at, to, own = f"model.layers.{i}.", f"layers.{i}.", s.kv_source(i) == i
    value = "k" if s.keys_are_values and i in s.global_layers else "v"
    parts = [("q", s.q_size), ("k", s.kv_size), (value, s.kv_size)] if own else [("q", s.q_size)]
    names = tuple((f"self_attn.{name}_proj", rows) for name, rows in parts)
    params = linear(to + "qkv", at, names, s.hidden, s.qkv_bias)
    for name in ("q_norm", "k_norm") if own else ("q_norm",):
        params += _vector(to + name, f"{at}self_attn.{name}.weight", s.head_dim)
    params += norm(to + "attention_out_norm", at + "post_attention_layernorm", s)
    params += norm(to + "mlp_out_norm", at + "post_feedforward_layernorm", s)
    params += _vector(to + "out_scale", at + "layer_scalar", 1)
    if s.moe is not None:
        params += _experts(s, s.moe, at, to)
    if s.per_layer is not None:
        params += linear(to + "per_layer_gate", at, (("per_layer_input_gate", s.per_layer.width),), s.hidden, False)
        params += linear(to + "per_layer_out", at, (("per_layer_projection", s.hidden),), s.per_layer.width, False)
        params += norm(to + "per_layer_out_norm", at + "post_per_layer_input_norm", s)
    return params


def _experts(s: ModelSpec, moe: MoeSpec, at: str, to: str) -> list[Param]:
    gate_up = fused(at + "experts.gate_up_proj", moe.experts, (2 * moe.intermediate, s.hidden), False)
    down = fused(at + "experts.down_proj", moe.experts, (s.hidden, moe.intermediate), False)
    return [
        *linear(to + "router", at, (("router.proj", moe.experts),), s.hidden, False),
        *_vector(to + "router_scale", at + "router.scale", s.hidden),
        *_vector(to + "expert_scale", at + "router.per_expert_scale", moe.experts),
        Param(to + "experts.gate_up", gate_up),
        Param(to + "experts.down", down),
        *norm(to + "experts_norm", at + "pre_feedforward_layernorm_2", s),
        *norm(to + "experts_out_norm", at + "post_feedforward_layernorm_2", s),
        *norm(to + "dense_out_norm", at + "post_feedforward_layernorm_1", s),
    ]


def _vector(target: str, name: str, size: int) -> list[Param]:
    return [Param(target, (Piece(name, (size,)),))]


IGNORE = (INV_FREQ, r"^lm_head\.weight$", r"^model\.layers\.\d+\.self_attn\.(k_proj|v_proj|k_norm)\.")
"""Files also have keys and values of layers that read those of others."""

GEMMA4 = Family(
    name="gemma4",
    models="Gemma 4 E2B, E4B, 26B-A4B, 31B (images)",
    model_types=("gemma4",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    ignore=(*IGNORE, r"^model\.(vision_tower|embed_vision|audio_tower|embed_audio)\."),
    spellings=(("model.language_model.", "model."),),
    vision="lightllm_mp.vision.families.gemma4:GEMMA4",
)

GEMMA4_TEXT = Family(
    name="gemma4_text",
    models="Gemma 4 (text)",
    model_types=("gemma4_text",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    ignore=IGNORE,
)
