"""Qwen3-Next: three of four layers are linear attention by the gated delta rule, the others have gated attention.

Its functions also make the hybrid layers of Qwen3.5.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.decoder_weights import Transform, linear
from lightllm_mp.models.families.common.expert_rules import with_experts
from lightllm_mp.models.families.common.family import INV_FREQ, Family, refuse, rope_spec, rotary_dim, standard_spec
from lightllm_mp.models.families.qwen.qwen_moe import gated_shared_experts, moe_spec, with_shared_expert
from lightllm_mp.models.spec import DeltaSpec, ModelSpec

KINDS = {"linear_attention": True, "full_attention": False}
MTP = r"^mtp\."
"""Layers for speculative decoding, which the decoder does not use."""


def read_hf(config: dict[str, Any]) -> ModelSpec:
    layers = int(config["num_hidden_layers"])
    moe = with_shared_expert(moe_spec(config, layers), config) if config.get("num_experts") else None
    return hybrid_spec(config, family="qwen3_next", moe=moe)


def hybrid_spec(config: dict[str, Any], *, family: str, **fields: Any) -> ModelSpec:
    """A spec with gated attention and linear attention; `fields` override the configuration."""
    refuse(config, hidden_act="silu", attention_bias=False, use_sliding_window=False, attn_output_gate=True)
    head_dim = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    return standard_spec(
        config,
        family=family,
        rope=rope_spec(config, dim=rotary_dim(config, head_dim, 0.25)),
        norm_offset=True,
        head_norm="rms",
        attention_gate=True,
        delta=DeltaSpec(
            key_heads=int(config["linear_num_key_heads"]),
            value_heads=int(config["linear_num_value_heads"]),
            key_dim=int(config["linear_key_head_dim"]),
            value_dim=int(config["linear_value_head_dim"]),
            taps=int(config["linear_conv_kernel_dim"]),
        ),
        linear_layers=_linear_layers(config),
        **fields,
    )


def _linear_layers(config: dict[str, Any]) -> tuple[int, ...]:
    """By `layer_types`, else all but every `full_attention_interval`-th layer."""
    layers, every = int(config["num_hidden_layers"]), int(config.get("full_attention_interval") or 4)
    if not (kinds := config.get("layer_types")):
        return tuple(i for i in range(layers) if (i + 1) % every)
    if len(kinds) != layers or not KINDS.keys() >= set(kinds):
        raise ModelError(f"layer_types must name {layers} layers of {' or '.join(KINDS)}")
    return tuple(i for i, kind in enumerate(kinds) if KINDS[kind])


def hf_weights(spec: ModelSpec) -> list[Param]:
    params = hybrid_weights(spec, _grouped_projections)
    return params if spec.moe is None else with_experts(spec, params) + gated_shared_experts(spec)


def hybrid_weights(spec: ModelSpec, projections: Callable[[ModelSpec, str, str], list[Param]]) -> list[Param]:
    """All parameters with plain MLPs; `projections` (spec, prefix in the file, prefix of targets) gives `qkvz` and `ba`
    of a layer with linear attention."""
    replaced = {f"layers.{i}.{name}" for i in range(spec.layers) for name in ("qkv", "o")}
    params = [param for param in llama.hf_weights(spec) if param.target not in replaced]
    for i in range(spec.layers):
        at, to = f"model.layers.{i}.", f"layers.{i}."
        if i in spec.linear_layers:
            params += projections(spec, at + "linear_attn.", to + "delta.")
            params += _linear_attention(spec, at + "linear_attn.", to + "delta.")
        else:
            params += _gated_attention(spec, at + "self_attn.", to)
    return params


def _gated_attention(spec: ModelSpec, at: str, to: str) -> list[Param]:
    """The rows of `q_proj` are, for each head, those of its query and those of its gate."""

    def part(which: int) -> Transform:
        return lambda x: x.reshape(spec.heads, 2, spec.head_dim, *x.shape[1:])[:, which].reshape(-1, *x.shape[1:])

    def q_proj(which: int) -> Piece:
        stored = (2 * spec.q_size, spec.hidden)
        return Piece(at + "q_proj.weight", (spec.q_size, spec.hidden), part(which), stored)

    keys_values = (Piece(f"{at}{name}_proj.weight", (spec.kv_size, spec.hidden)) for name in ("k", "v"))
    return [
        Param(to + "qkv", (q_proj(0), *keys_values)),
        Param(to + "q_gate", (q_proj(1),)),
        *linear(to + "o", at, (("o_proj", spec.hidden),), spec.q_size, False),
        *(Param(to + name, (Piece(f"{at}{name}.weight", (spec.head_dim,)),)) for name in ("q_norm", "k_norm")),
    ]


def _linear_attention(spec: ModelSpec, at: str, to: str) -> list[Param]:
    """The weights behind the projections."""
    delta = spec.delta
    assert delta is not None
    shape = (delta.channels, delta.taps)
    conv = Piece(at + "conv1d.weight", shape, lambda x: x.reshape(shape), (delta.channels, 1, delta.taps))
    return [
        Param(to + "conv", (conv,)),
        Param(to + "a_log", (Piece(at + "A_log", (delta.value_heads,)),)),
        Param(to + "dt_bias", (Piece(at + "dt_bias", (delta.value_heads,)),)),
        Param(to + "norm", (Piece(at + "norm.weight", (delta.value_dim,)),)),
        *linear(to + "out", at, (("out_proj", spec.hidden),), delta.value_size, False),
    ]


def _grouped_projections(spec: ModelSpec, at: str, to: str) -> list[Param]:
    """Rows of the file by key head: its query, key, values and gates; the b and the a of its value heads."""
    delta = spec.delta
    assert delta is not None
    values = delta.value_size // delta.key_heads
    parts = {
        "qkvz": (delta.key_dim, delta.key_dim, values, values),
        "ba": (delta.value_heads // delta.key_heads,) * 2,
    }
    params: list[Param] = []
    for target, widths in parts.items():
        name, rows = "in_proj_" + target, delta.key_heads * sum(widths)
        params += linear(to + target, at, ((name, rows),), spec.hidden, False, {name: parts_apart(widths)})
    return params


def parts_apart(widths: tuple[int, ...]) -> Transform:
    """For rows that are stored head by head, each as parts of `widths` rows: all first parts, all second parts, .."""
    bounds = list(pairwise((0, *accumulate(widths))))

    def reorder(tensor: Any) -> Any:
        rows = range(0, tensor.shape[0], sum(widths))
        return tensor[[head + i for first, end in bounds for head in rows for i in range(first, end)]]

    return reorder


QWEN3_NEXT = Family(
    name="qwen3_next",
    models="Qwen3-Next",
    model_types=("qwen3_next",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    ignore=(INV_FREQ, MTP),
)
