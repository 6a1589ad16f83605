"""DeepSeek-V2 and V2-Lite: latent attention, and experts beside shared ones."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from lightllm_mp.errors import ModelError
from lightllm_mp.models.families.base import Family, activation, refuse, rope_spec, standard_spec
from lightllm_mp.models.families.experts import with_experts
from lightllm_mp.models.families.rules import Names, decoder, linear
from lightllm_mp.models.spec import MlaSpec, ModelSpec, MoeSpec
from lightllm_mp.models.weights import Param, Piece


def read_hf(config: dict[str, Any]) -> ModelSpec:
    refuse(config, attention_bias=False, scoring_func="softmax")
    mla = MlaSpec(
        q_lora=int(config.get("q_lora_rank") or 0),
        kv_lora=int(config["kv_lora_rank"]),
        nope_dim=int(config["qk_nope_head_dim"]),
        rope_dim=int(config["qk_rope_head_dim"]),
        value_dim=int(config["v_head_dim"]),
    )
    width = mla.nope_dim + mla.rope_dim
    rope = msgspec.structs.replace(rope_spec(config, dim=mla.rope_dim), interleaved=True)
    return standard_spec(
        config,
        family="deepseek_v2",
        kv_heads=1,
        head_dim=width,
        rope=rope,
        attention_scale=width**-0.5 * _stretch(config) ** 2,
        mla=mla,
        moe=_moe(config),
        activation=activation(config.get("hidden_act", "silu")),
    )


def _stretch(config: dict[str, Any]) -> float:
    """Factor on queries and keys that goes with yarn's (arXiv 2309.00071, section 3.4), here on all components."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    factor, weight = float(scaling.get("factor") or 1.0), float(scaling.get("mscale_all_dim") or 0.0)
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _moe(config: dict[str, Any]) -> MoeSpec:
    """The factor on the weights counts only where they are not renormalised."""
    method = config.get("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise ModelError(f"topk_method {method!r} is not supported")
    grouped, top_k = method == "group_limited_greedy", int(config["num_experts_per_tok"])
    renormalise = bool(config.get("norm_topk_prob", False)) and top_k > 1
    width, layers = int(config["moe_intermediate_size"]), range(int(config["num_hidden_layers"]))
    first, step = int(config.get("first_k_dense_replace", 0)), int(config.get("moe_layer_freq", 1))
    return MoeSpec(
        experts=int(config["n_routed_experts"]),
        top_k=top_k,
        intermediate=width,
        renormalise=renormalise,
        scale=1.0 if renormalise else float(config.get("routed_scaling_factor", 1.0)),
        groups=int(config["n_group"]) if grouped else 1,
        top_groups=int(config["topk_group"]) if grouped else 1,
        shared_intermediate=int(config.get("n_shared_experts") or 0) * width,
        dense_layers=tuple(i for i in layers if i < first or i % step),
    )


def hf_weights(spec: ModelSpec) -> list[Param]:
    mla, moe = spec.mla, spec.moe
    assert mla is not None
    assert moe is not None
    params = [p for p in decoder(spec, Names()) if not p.target.endswith((".qkv", ".o"))]
    for i in range(spec.layers):
        params += _latent(spec, mla, f"layers.{i}.", f"model.layers.{i}.self_attn.")
        if moe.shared_intermediate and i not in moe.dense_layers:
            at, to, width = f"model.layers.{i}.mlp.shared_experts.", f"layers.{i}.shared.", moe.shared_intermediate
            params += linear(to + "gate_up", at, (("gate_proj", width), ("up_proj", width)), spec.hidden, False)
            params += linear(to + "down", at, (("down_proj", spec.hidden),), width, False)
    return with_experts(spec, params)


def _latent(spec: ModelSpec, mla: MlaSpec, to: str, at: str) -> list[Param]:
    query = spec.heads * (mla.nope_dim + mla.rope_dim)
    if mla.q_lora:
        params = [
            *linear(to + "q_a", at, (("q_a_proj", mla.q_lora),), spec.hidden, False),
            Param(to + "q_a_norm", (Piece(at + "q_a_layernorm.weight", (mla.q_lora,)),)),
            *linear(to + "q_b", at, (("q_b_proj", query),), mla.q_lora, False),
        ]
    else:
        params = linear(to + "q", at, (("q_proj", query),), spec.hidden, False)
    keys_and_values = spec.heads * (mla.nope_dim + mla.value_dim)
    return [
        *params,
        *linear(to + "kv_a", at, (("kv_a_proj_with_mqa", mla.kv_lora + mla.rope_dim),), spec.hidden, False),
        Param(to + "kv_a_norm", (Piece(at + "kv_a_layernorm.weight", (mla.kv_lora,)),)),
        *linear(to + "kv_b", at, (("kv_b_proj", keys_and_values),), mla.kv_lora, False),
        *linear(to + "o", at, (("o_proj", spec.hidden),), spec.heads * mla.value_dim, False),
    ]


DEEPSEEK_V2 = Family(name="deepseek_v2", model_types=("deepseek_v2",), read_hf=read_hf, hf_weights=hf_weights)
