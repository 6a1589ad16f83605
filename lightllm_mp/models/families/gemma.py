"""Gemma 1, 2 and 3 (text): norms by 1 + weight, a scaled embedding, and since Gemma 2 windows and branch norms."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import TensorNames, decoder, norm
from lightllm_mp.models.families.common.family import (
    INV_FREQ,
    Family,
    activation,
    global_layers,
    nested_text,
    refuse,
    rope_spec,
    standard_spec,
)
from lightllm_mp.models.families.common.gguf_rules import NAMES, GGUFKeys, gguf_rope, gguf_spec, head_norms
from lightllm_mp.models.spec import ModelSpec, RopeSpec

HEAD_DIM, SCALAR, WINDOW = 256, 256, 4096
LOCAL_THETA, GLOBAL_THETA = 10000.0, 1000000.0
PERIOD = 6
"""Every sixth layer of Gemma 3 is global: it has no window."""
GEMMA2_27B_LAYERS, GEMMA3_27B_LAYERS = 46, 62
GEMMA3_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
"""Defaults of transformers' Gemma3TextConfig: files with images leave out keys with these values."""
BRANCH_NAMES = TensorNames(post_norm="pre_feedforward_layernorm")


def read_gemma(config: dict[str, Any]) -> ModelSpec:
    """`hidden_act` gelu of the first release means the tanh form."""
    return _spec(config, family="gemma", activation=activation(config.get("hidden_activation") or "gelu_pytorch_tanh"))


def read_gemma2(config: dict[str, Any]) -> ModelSpec:
    """Even layers have a window."""
    layers = range(int(config["num_hidden_layers"]))
    return _branched(
        config,
        family="gemma2",
        window=int(config.get("sliding_window") or WINDOW),
        global_layers=global_layers(config, tuple(layers[1::2])),
        score_softcap=float(config.get("attn_logit_softcapping", 50.0) or 0.0),
        logit_softcap=float(config.get("final_logit_softcapping", 30.0) or 0.0),
    )


def read_gemma3(config: dict[str, Any]) -> ModelSpec:
    """Layers with a window have their own rotary embedding, which is never scaled. `max_position_embeddings` includes
    the scaling of the others."""
    layers, period = range(int(config["num_hidden_layers"])), int(config.get("sliding_window_pattern") or PERIOD)
    by_kind = config.get("rope_parameters") or {}
    head_dim = int(config.get("head_dim") or HEAD_DIM)
    everywhere = {**config, "rope_parameters": by_kind.get("full_attention")}
    local = by_kind.get("sliding_attention") or {"rope_theta": config.get("rope_local_base_freq", LOCAL_THETA)}
    return _branched(
        config,
        family="gemma3",
        rope=rope_spec(everywhere, dim=head_dim, default_theta=GLOBAL_THETA),
        local_rope=rope_spec({**config, "rope_parameters": local}, dim=head_dim),
        window=int(config.get("sliding_window") or WINDOW),
        global_layers=global_layers(config, tuple(layers[period - 1 :: period])),
        max_context=int(config["max_position_embeddings"]),
        head_norm="rms",
        score_softcap=float(config.get("attn_logit_softcapping") or 0.0),
        logit_softcap=float(config.get("final_logit_softcapping") or 0.0),
    )


def read_gemma3_vl(config: dict[str, Any]) -> ModelSpec:
    """Gemma 3 with a vision tower: the tokens of an image see each other."""
    spec = read_gemma3(nested_text(config, GEMMA3_DEFAULTS, ("gemma3_text",)))
    return msgspec.structs.replace(spec, family="gemma3_vl", image_span=int(config.get("mm_tokens_per_image", 256)))


def _branched(config: dict[str, Any], **fields: Any) -> ModelSpec:
    act = activation(config.get("hidden_activation") or "gelu_pytorch_tanh")
    scale = float(config.get("query_pre_attn_scalar") or SCALAR) ** -0.5
    return _spec(config, branch_norms=True, activation=act, attention_scale=scale, **fields)


def _spec(config: dict[str, Any], **fields: Any) -> ModelSpec:
    refuse(config, use_bidirectional_attention=False)
    bias = bool(config.get("attention_bias", False))
    return standard_spec(
        {**config, "head_dim": config.get("head_dim") or HEAD_DIM},
        tied=bool(config.get("tie_word_embeddings", True)),
        norm_offset=True,
        embed_scale=math.sqrt(int(config["hidden_size"])),
        qkv_bias=bias,
        o_bias=bias,
        **fields,
    )


def hf_weights(spec: ModelSpec) -> list[Param]:
    if not spec.branch_norms:
        return decoder(spec, TensorNames())
    params = decoder(spec, BRANCH_NAMES)
    for i in range(spec.layers):
        at, to = f"model.layers.{i}.", f"layers.{i}."
        params += norm(to + "attention_out_norm", at + "post_attention_layernorm", spec)
        params += norm(to + "mlp_out_norm", at + "post_feedforward_layernorm", spec)
        if spec.head_norm:
            names = ("q_norm", "k_norm")
            params += [Param(to + n, (Piece(f"{at}self_attn.{n}.weight", (spec.head_dim,)),)) for n in names]
    return params


def read_gemma_gguf(keys: GGUFKeys) -> ModelSpec:
    return _gguf_spec(keys, "gemma")


def read_gemma2_gguf(keys: GGUFKeys) -> ModelSpec:
    return _gguf_spec(
        keys,
        "gemma2",
        branch_norms=True,
        window=keys.integer("attention.sliding_window", WINDOW),
        global_layers=tuple(range(keys.count("block_count")))[1::2],
        attention_scale=_gguf_scale(keys, GEMMA2_27B_LAYERS),
        score_softcap=keys.number("attn_logit_softcapping", 50.0),
        logit_softcap=keys.number("final_logit_softcapping", 30.0),
    )


def read_gemma3_gguf(keys: GGUFKeys) -> ModelSpec:
    rope = gguf_rope(keys, dim=keys.head_dim)
    return _gguf_spec(
        keys,
        "gemma3",
        branch_norms=True,
        head_norm="rms",
        rope=rope,
        local_rope=RopeSpec(theta=keys.number("rope.freq_base_swa", LOCAL_THETA), dim=rope.dim),
        max_context=keys.integer("context_length"),
        global_layers=_gguf_global_layers(keys),
        attention_scale=_gguf_scale(keys, GEMMA3_27B_LAYERS),
        logit_softcap=keys.number("final_logit_softcapping", 0.0),
    )


def _gguf_spec(keys: GGUFKeys, family: str, **fields: Any) -> ModelSpec:
    """The converter adds 1 to the norms' weights."""
    scale = math.sqrt(keys.integer("embedding_length"))
    return gguf_spec(keys, family=family, activation="gelu_tanh", embed_scale=scale, **fields)


def _gguf_scale(keys: GGUFKeys, layers_of_27b: int) -> float:
    """The factor on scores, which the converter does not write. It follows from the width of a head; in the 27B models,
    recognised by their number of layers, from the hidden size."""
    if keys.count("block_count") == layers_of_27b:
        width = keys.integer("embedding_length") // keys.count("attention.head_count")
    else:
        width = keys.head_dim
    return keys.number("attention.scale", width**-0.5)


def _gguf_global_layers(keys: GGUFKeys) -> tuple[int, ...]:
    """By the family's rule, or by the file: a period, or for each layer whether it has a window."""
    layers, pattern = range(keys.count("block_count")), keys.get("attention.sliding_window_pattern")
    if pattern is None or isinstance(pattern, int):
        period = pattern or PERIOD
        return tuple(layers[period - 1 :: period])
    if len(pattern) != len(layers):
        raise ModelError(f"attention.sliding_window_pattern has {len(pattern)} values for {len(layers)} layers")
    return tuple(i for i in layers if not pattern[i])


def gguf_weights(spec: ModelSpec, keys: GGUFKeys) -> list[Param]:
    params = decoder(spec, NAMES) + head_norms(spec)
    for i in range(spec.layers if spec.branch_norms else 0):
        params += norm(f"layers.{i}.attention_out_norm", f"blk.{i}.post_attention_norm", spec)
        params += norm(f"layers.{i}.mlp_out_norm", f"blk.{i}.post_ffw_norm", spec)
    return params


IGNORE = (INV_FREQ, r"^lm_head\.weight$")
GEMMA = Family(
    name="gemma",
    models="Gemma 2B, 7B",
    model_types=("gemma",),
    read_hf=read_gemma,
    hf_weights=hf_weights,
    gguf_architectures=("gemma",),
    read_gguf=read_gemma_gguf,
    gguf_weights=gguf_weights,
    ignore=IGNORE,
)
GEMMA2 = Family(
    name="gemma2",
    models="Gemma 2",
    model_types=("gemma2",),
    read_hf=read_gemma2,
    hf_weights=hf_weights,
    gguf_architectures=("gemma2",),
    read_gguf=read_gemma2_gguf,
    gguf_weights=gguf_weights,
    ignore=IGNORE,
)
GEMMA3 = Family(
    name="gemma3",
    models="Gemma 3 (text)",
    model_types=("gemma3_text",),
    read_hf=read_gemma3,
    hf_weights=hf_weights,
    gguf_architectures=("gemma3",),
    read_gguf=read_gemma3_gguf,
    gguf_weights=gguf_weights,
    ignore=IGNORE,
)
GEMMA3_VL = Family(
    name="gemma3_vl",
    models="Gemma 3 4B, 12B, 27B (images)",
    model_types=("gemma3",),
    read_hf=read_gemma3_vl,
    hf_weights=hf_weights,
    gguf_written_as="gemma3",
    ignore=(*IGNORE, r"^(model\.)?(vision_tower|multi_modal_projector)\."),
    spellings=(
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("model.language_model.", "model."),
    ),
    vision="lightllm_mp.vision.families.gemma3:GEMMA3",
)
