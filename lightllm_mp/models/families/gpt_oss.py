"""gpt-oss: attention sinks, a window in every other layer, biases everywhere, and experts with a clamped SwiGLU.

Folders hold the experts of a layer as one tensor, in bfloat16 [experts, inputs, outputs] or in MXFP4
[experts, outputs, inputs]; gate and up lie in turn along the outputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import TensorNames, decoder, linear
from lightllm_mp.models.families.common.expert_rules import instead_of_mlps
from lightllm_mp.models.families.common.family import Family, global_layers, refuse, standard_spec
from lightllm_mp.models.families.common.gguf_rules import (
    NAMES,
    GGUFKeys,
    gguf_moe,
    gguf_rope,
    gguf_spec,
    with_stacked_experts,
)
from lightllm_mp.models.families.common.text_half import TextHalf
from lightllm_mp.models.spec import ModelSpec, MoeSpec

MXFP4 = "mxfp4"
BLOCK = 32
"""Inputs of a block of MXFP4."""
SWIGLU_LIMIT = 7.0


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """Even layers have a window if `layer_types` is absent."""
    refuse(config, hidden_act="silu", swiglu_limit=SWIGLU_LIMIT)
    layers, packed = range(int(config["num_hidden_layers"])), config.get("quantization_config") or {}
    biased = bool(config.get("attention_bias", True))
    spec = standard_spec(
        config,
        family="gpt_oss",
        norm_eps=float(config.get("rms_norm_eps", 1e-5)),
        window=int(config["sliding_window"]),
        global_layers=global_layers(config, tuple(layers[1::2])),
        qkv_bias=biased,
        o_bias=biased,
        **_fields(
            MoeSpec(
                experts=int(config["num_local_experts"]),
                top_k=int(config.get("num_experts_per_tok") or config["experts_per_token"]),
                intermediate=int(config["intermediate_size"]),
                renormalise=True,
                bias=True,
            )
        ),
    )
    return _in_blocks(spec) if packed.get("quant_method") == MXFP4 else spec


def _fields(moe: MoeSpec) -> dict[str, Any]:
    """Fields that folders and GGUF files share. The softmax over the chosen experts' logits is that over all, with the
    chosen weights divided by their sum."""
    return {"sinks": True, "activation": "swiglu_oai", "moe": moe}


def _in_blocks(spec: ModelSpec) -> ModelSpec:
    assert spec.moe is not None
    moe = msgspec.structs.replace(spec.moe, width_multiple=BLOCK)
    return msgspec.structs.replace(spec, file_dtype=MXFP4, moe=moe)


def hf_weights(spec: ModelSpec) -> list[Param]:
    params = instead_of_mlps(spec, decoder(spec, TensorNames()), lambda layer: _experts(spec, layer))
    return params + _sinks(spec, "model.layers.{}.self_attn.sinks")


def _experts(spec: ModelSpec, layer: int) -> list[Param]:
    moe, at, to = spec.moe, f"model.layers.{layer}.mlp.", f"layers.{layer}."
    assert moe is not None
    count, rows = moe.experts, 2 * moe.intermediate
    packed = spec.file_dtype == MXFP4
    gate_up, down = (count, rows, spec.hidden), (count, spec.hidden, moe.intermediate)

    def stored(shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return shape if packed else (shape[0], shape[2], shape[1])

    def outputs_first(tensor: Any) -> Any:
        return tensor if packed else tensor.swapaxes(1, 2)

    first = Piece(
        at + "experts.gate_up_proj",
        (count * rows, spec.hidden),
        lambda tensor: _halves(outputs_first(tensor)).reshape(count * rows, -1),
        stored(gate_up),
    )
    last = Piece(
        at + "experts.down_proj",
        (count * spec.hidden, moe.intermediate),
        lambda tensor: outputs_first(tensor).reshape(count * spec.hidden, -1),
        stored(down),
    )
    first_bias = Piece(
        at + "experts.gate_up_proj_bias",
        (count * rows,),
        lambda tensor: _halves(tensor).reshape(-1),
        gate_up[:2],
    )
    last_bias = Piece(
        at + "experts.down_proj_bias", (count * spec.hidden,), lambda tensor: tensor.reshape(-1), down[:2]
    )
    return [
        *linear(to + "router", at, (("router", count),), spec.hidden, True),
        Param(to + "experts.gate_up", (first,)),
        Param(to + "experts.gate_up.bias", (first_bias,)),
        Param(to + "experts.down", (last,)),
        Param(to + "experts.down.bias", (last_bias,)),
    ]


def _halves(tensor: Any) -> Any:
    """[experts, gate and up in turn, ...] -> [experts, all of gate, then all of up, ...]."""
    experts, rows = tensor.shape[:2]
    return tensor.reshape(experts, rows // 2, 2, *tensor.shape[2:]).swapaxes(1, 2).reshape(tensor.shape)


def _sinks(spec: ModelSpec, name: str) -> list[Param]:
    return [Param(f"layers.{i}.sinks", (Piece(name.format(i), (spec.heads,)),)) for i in range(spec.layers)]


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    """The converter writes neither the period of the windows nor that YaRN's bounds are not rounded."""
    rope = gguf_rope(keys, dim=keys.head_dim)
    return gguf_spec(
        keys,
        family="gpt_oss",
        rope=msgspec.structs.replace(rope, truncate=False),
        intermediate=keys.integer("feed_forward_length", keys.integer("expert_feed_forward_length")),
        global_layers=tuple(range(keys.count("block_count")))[1::2],
        **_fields(gguf_moe(keys, renormalise=True, bias=True, width_multiple=BLOCK)),
    )


def gguf_weights(spec: ModelSpec, keys: GGUFKeys) -> list[Param]:
    params = with_stacked_experts(spec, decoder(spec, replace(NAMES, post_norm="post_attention_norm")), keys)
    return params + _sinks(spec, "blk.{}.attn_sinks.weight")


GPT_OSS = Family(
    name="gpt_oss",
    models="gpt-oss 20B, 120B",
    model_types=("gpt_oss",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("gpt-oss",),
    read_gguf=read_gguf,
    gguf_weights=gguf_weights,
    text=TextHalf(ends=("<|return|>", "<|call|>")),
)
