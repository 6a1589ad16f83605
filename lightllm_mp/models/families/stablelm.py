"""StableLM 2 and 3B: layer norms, partial rotary embedding; the 12B has parallel attention and MLP, and head norms."""

from __future__ import annotations

from typing import Any

from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import TensorNames, decoder
from lightllm_mp.models.families.common.family import Family, activation, rope_spec, rotary_dim, standard_spec
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys, gguf_spec, plain_weights
from lightllm_mp.models.spec import ModelSpec


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """The oldest checkpoints (`stablelm_epoch`) have `rope_pct` and `norm_eps`."""
    head_dim = int(config["hidden_size"]) // int(config["num_attention_heads"])
    rope = rope_spec(config, dim=rotary_dim(config, head_dim, float(config.get("rope_pct", 0.25))))
    return standard_spec(
        config,
        family="stablelm",
        rope=rope,
        norm_eps=float(config.get("layer_norm_eps") or config.get("norm_eps") or 1e-5),
        norm="layer",
        norm_bias=True,
        parallel=bool(config.get("use_parallel_residual", False)),
        head_norm="layer" if config.get("qk_layernorm") else "",
        each_head_norm=bool(config.get("qk_layernorm", False)),
        qkv_bias=bool(config.get("use_qkv_bias", False)),
        activation=activation(config.get("hidden_act", "silu")),
    )


def hf_weights(spec: ModelSpec) -> list[Param]:
    params = decoder(spec, TensorNames())
    if not spec.head_norm:
        return params
    norms = (("q_norm", "q_layernorm", spec.heads), ("k_norm", "k_layernorm", spec.kv_heads))
    return params + [
        Param(f"layers.{i}.{to}", tuple(_head(f"model.layers.{i}.self_attn.{name}.norms.{j}", spec) for j in range(n)))
        for i in range(spec.layers)
        for to, name, n in norms
    ]


def _head(name: str, spec: ModelSpec) -> Piece:
    return Piece(name + ".weight", (spec.head_dim,))


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    normed = keys.has("blk.0.attn_q_norm.weight")
    return gguf_spec(
        keys,
        family="stablelm",
        norm="layer",
        parallel=not keys.has("blk.0.ffn_norm.weight"),  # the key for it is wrong in some files
        head_norm="layer" if normed else "",
        each_head_norm=normed,
    )


STABLELM = Family(
    name="stablelm",
    models="StableLM-2 1.6B and 12B, StableLM 3B",
    model_types=("stablelm", "stablelm_epoch"),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("stablelm",),
    read_gguf=read_gguf,
    gguf_weights=plain_weights,
)
