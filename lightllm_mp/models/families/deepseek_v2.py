"""DeepSeek-V2 and V2-Lite: latent attention, and experts beside shared ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import msgspec

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import TensorNames, Transform, decoder, linear
from lightllm_mp.models.families.common.expert_rules import shared_experts, with_experts
from lightllm_mp.models.families.common.family import Family, activation, refuse, rope_spec, standard_spec
from lightllm_mp.models.families.common.gguf_rules import (
    NAMES,
    GGUFKeys,
    gguf_moe,
    gguf_rope,
    gguf_spec,
    shared_expert,
    shared_width,
    with_stacked_experts,
)
from lightllm_mp.models.spec import MlaSpec, ModelSpec, MoeSpec


@dataclass(frozen=True, slots=True)
class LatentNames:
    """Names of the parts of latent attention, without `.weight`."""

    q: str = "q_proj"
    q_a: str = "q_a_proj"
    q_a_norm: str = "q_a_layernorm"
    q_b: str = "q_b_proj"
    kv_a: str = "kv_a_proj_with_mqa"
    kv_a_norm: str = "kv_a_layernorm"
    kv_b: str = "kv_b_proj"
    o: str = "o_proj"


GGUF_LATENT = LatentNames(
    *("attn_q", "attn_q_a", "attn_q_a_norm", "attn_q_b"),
    *("attn_kv_a_mqa", "attn_kv_a_norm", "attn_kv_b", "attn_output"),
)


def read_hf(config: dict[str, Any]) -> ModelSpec:
    refuse(config, scoring_func="softmax")
    return latent_spec(config, family="deepseek_v2", moe=_moe(config))


def latent_spec(config: dict[str, Any], **fields: Any) -> ModelSpec:
    """The spec of a model with latent attention; `fields` are what else it has."""
    refuse(config, attention_bias=False)
    mla = MlaSpec(
        q_lora=int(config.get("q_lora_rank") or 0),
        kv_lora=int(config["kv_lora_rank"]),
        nope_dim=int(config["qk_nope_head_dim"]),
        rope_dim=int(config["qk_rope_head_dim"]),
        value_dim=int(config["v_head_dim"]),
    )
    width = mla.nope_dim + mla.rope_dim
    interleaved = config.get("rope_interleave") is not False
    rope = msgspec.structs.replace(rope_spec(config, dim=mla.rope_dim), interleaved=interleaved)
    return standard_spec(
        config,
        kv_heads=1,
        head_dim=width,
        rope=rope,
        attention_scale=width**-0.5 * _stretch(config) ** 2,
        mla=mla,
        activation=activation(config.get("hidden_act", "silu")),
        **fields,
    )


def _stretch(config: dict[str, Any]) -> float:
    """YaRN's factor on queries and keys (arXiv 2309.00071, section 3.4), here on all components."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    factor, weight = float(scaling.get("factor") or 1.0), float(scaling.get("mscale_all_dim") or 0.0)
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _moe(config: dict[str, Any]) -> MoeSpec:
    """The factor on the weights applies only if they are not renormalised."""
    method = config.get("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise ModelError(f"topk_method {method!r} is not supported")
    grouped, top_k = method == "group_limited_greedy", int(config["num_experts_per_tok"])
    renormalise = bool(config.get("norm_topk_prob", False)) and top_k > 1
    width = int(config["moe_intermediate_size"])
    return MoeSpec(
        experts=int(config["n_routed_experts"]),
        top_k=top_k,
        intermediate=width,
        renormalise=renormalise,
        scale=1.0 if renormalise else float(config.get("routed_scaling_factor", 1.0)),
        groups=int(config["n_group"]) if grouped else 1,
        top_groups=int(config["topk_group"]) if grouped else 1,
        shared_intermediate=int(config.get("n_shared_experts") or 0) * width,
        dense_layers=dense_layers(config),
    )


def dense_layers(config: dict[str, Any]) -> tuple[int, ...]:
    """The layers without experts."""
    layers = range(int(config["num_hidden_layers"]))
    first, step = int(config.get("first_k_dense_replace", 0)), int(config.get("moe_layer_freq", 1))
    return tuple(i for i in layers if i < first or i % step)


def hf_weights(spec: ModelSpec) -> list[Param]:
    mla = spec.mla
    assert mla is not None
    params = _without_attention(decoder(spec, TensorNames()))
    for i in range(spec.layers):
        params += _latent(spec, mla, f"layers.{i}.", f"model.layers.{i}.self_attn.", LatentNames())
    return with_experts(spec, params) + shared_experts(spec)


def _without_attention(params: list[Param]) -> list[Param]:
    return [param for param in params if not param.target.endswith((".qkv", ".o"))]


def _latent(spec: ModelSpec, mla: MlaSpec, to: str, at: str, names: LatentNames) -> list[Param]:
    query = spec.heads * (mla.nope_dim + mla.rope_dim)
    if mla.q_lora:
        params = [
            *linear(to + "q_a", at, ((names.q_a, mla.q_lora),), spec.hidden, False),
            Param(to + "q_a_norm", (Piece(f"{at}{names.q_a_norm}.weight", (mla.q_lora,)),)),
            *linear(to + "q_b", at, ((names.q_b, query),), mla.q_lora, False),
        ]
    else:
        params = linear(to + "q", at, ((names.q, query),), spec.hidden, False)
    keys_and_values = spec.heads * (mla.nope_dim + mla.value_dim)
    return [
        *params,
        *linear(to + "kv_a", at, ((names.kv_a, mla.kv_lora + mla.rope_dim),), spec.hidden, False),
        Param(to + "kv_a_norm", (Piece(f"{at}{names.kv_a_norm}.weight", (mla.kv_lora,)),)),
        *linear(to + "kv_b", at, ((names.kv_b, keys_and_values),), mla.kv_lora, False),
        *linear(to + "o", at, ((names.o, spec.hidden),), spec.heads * mla.value_dim, False),
    ]


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    """The plain keys hold the width of a head in files before 2025, and that of the latent in later ones."""
    width = keys.integer("attention.key_length_mla", keys.get("attention.key_length"))
    rope = gguf_rope(keys, dim=keys.integer("rope.dimension_count"))
    mla = MlaSpec(
        q_lora=keys.integer("attention.q_lora_rank", 0),
        kv_lora=keys.integer("attention.kv_lora_rank"),
        nope_dim=width - rope.dim,
        rope_dim=rope.dim,
        value_dim=keys.integer("attention.value_length_mla", keys.get("attention.value_length")),
    )
    stretch, moe = keys.number("rope.scaling.yarn_log_multiplier", 0.0), _gguf_moe(keys)
    return gguf_spec(
        keys,
        family="deepseek_v3" if moe.sigmoid else "deepseek_v2",
        kv_heads=1,
        head_dim=width,
        # the file has one multiplier for queries and keys and for cos and sin: the latter cancels out
        rope=msgspec.structs.replace(rope, interleaved=True, amplitude=1.0 if stretch else rope.amplitude),
        attention_scale=width**-0.5 * (1 + stretch * math.log(rope.factor)) ** 2,
        mla=mla,
        moe=moe,
    )


V3_EXPERTS, V3_GROUPS = 256, (8, 4)
"""DeepSeek-V3's experts, their groups, and the groups that take part, which files before October 2025 lack."""


def _gguf_moe(keys: GGUFKeys) -> MoeSpec:
    groups = keys.count("expert_group_count", 1)
    moe = gguf_moe(
        keys,
        renormalise=False,
        shared_intermediate=shared_width(keys),
        groups=groups,
        top_groups=keys.count("expert_group_used_count", groups),
        dense_layers=tuple(range(keys.count("leading_dense_block_count", 0))),
    )
    if not moe.sigmoid:  # in V2 the factor applies only if weights are not renormalised
        return msgspec.structs.replace(moe, scale=1.0) if moe.renormalise else moe
    if moe.experts == V3_EXPERTS and keys.get("expert_group_count") is None:
        moe = msgspec.structs.replace(moe, groups=V3_GROUPS[0], top_groups=V3_GROUPS[1])
    return msgspec.structs.replace(moe, group_best=2)


def gguf_weights(spec: ModelSpec, keys: GGUFKeys) -> list[Param]:
    assert spec.mla is not None
    params = with_stacked_experts(spec, _without_attention(decoder(spec, NAMES)), keys) + shared_expert(spec, keys)
    for i in range(spec.layers):
        at, to = f"blk.{i}.", f"layers.{i}."
        latent = _latent(spec, spec.mla, to, at, GGUF_LATENT)
        if at + "attn_k_b.weight" in keys.file.tensors:
            latent = [p if p.target != to + "kv_b" else _split_kv_b(spec, spec.mla, to, at) for p in latent]
        params += latent
    return params


def _split_kv_b(spec: ModelSpec, mla: MlaSpec, to: str, at: str) -> Param:
    """`kv_b` from one tensor of keys [heads, kv_lora, nope_dim], transposed, and one of values [heads, value_dim,
    kv_lora]. It is not a plain projection, so it is never kept in quantised form, and transposing it is safe."""
    key, value = (mla.nope_dim, mla.kv_lora), (mla.value_dim, mla.kv_lora)
    pieces = []
    for head in range(spec.heads):
        pieces.append(Piece(at + "attn_k_b.weight", key, _turned(head), stored=(spec.heads, *key[::-1])))
        pieces.append(Piece(at + "attn_v_b.weight", value, itemgetter(head), stored=(spec.heads, *value)))
    return Param(to + "kv_b", tuple(pieces))


def _turned(head: int) -> Transform:
    return lambda tensor: tensor[head].T


DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    models="DeepSeek-V2, V2-Lite, Coder-V2 (latent attention)",
    model_types=("deepseek_v2",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    mtp=True,  # of V3, whose GGUF files have the same architecture
    gguf_architectures=("deepseek2",),
    read_gguf=read_gguf,
    gguf_weights=gguf_weights,
)
