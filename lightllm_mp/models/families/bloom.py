"""BLOOM and BLOOMZ: alibi, a normalised embedding, layer norms and biases everywhere."""

from __future__ import annotations

from typing import Any

from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families.common.decoder_weights import TensorNames, decoder, heads_apart, norm
from lightllm_mp.models.families.common.family import Family, bos_id, eos_ids, file_dtype, refuse
from lightllm_mp.models.families.common.gguf_rules import ONE_UP, GGUFKeys, gguf_spec, names_in
from lightllm_mp.models.spec import ModelSpec

QKV = "self_attention.query_key_value"
NAMES = TensorNames(
    embed="word_embeddings",
    norm="ln_f",
    layer="h.{}.",
    qkv=(QKV,),
    o="self_attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
)
CONTEXT = 2048
"""Training length of all released checkpoints; alibi itself has no limit."""


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """Some checkpoints have `n_embed` and `num_attention_heads`, others `hidden_size` and `n_head`."""
    refuse(config, apply_residual_connection_post_layernorm=False)
    hidden = int(config.get("hidden_size") or config["n_embed"])
    heads = int(config.get("n_head") or config["num_attention_heads"])
    return ModelSpec(
        family="bloom",
        vocab=int(config["vocab_size"]),
        hidden=hidden,
        layers=int(config.get("n_layer") or config["num_hidden_layers"]),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=int(config.get("n_inner") or 4 * hidden),
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        rope=None,
        max_context=int(config.get("seq_length") or CONTEXT),
        eos_ids=eos_ids(config),
        bos_id=bos_id(config),
        file_dtype=file_dtype(config),
        tied=True,
        embed_norm=True,
        norm="layer",
        norm_bias=True,
        alibi=True,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        gated=False,
        activation="gelu_tanh",
    )


def hf_weights(spec: ModelSpec) -> list[Param]:
    rules = decoder(spec, NAMES, {QKV: heads_apart(spec.heads)})
    return rules + norm("embed_norm", "word_embeddings_layernorm", spec)


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    return gguf_spec(
        keys,
        family="bloom",
        rope=None,
        alibi=True,
        embed_norm=True,
        norm="layer",
        gated=False,
        activation="gelu_tanh",
    )


def gguf_weights(spec: ModelSpec, keys: GGUFKeys) -> list[Param]:
    """The converter groups all queries, all keys and all values."""
    return decoder(spec, names_in(keys, ONE_UP)) + norm("embed_norm", "token_embd_norm", spec)


BLOOM = Family(
    name="bloom",
    models="BLOOM, BLOOMZ",
    model_types=("bloom",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("bloom",),
    read_gguf=read_gguf,
    gguf_weights=gguf_weights,
    spellings=(("transformer.", ""),),
    ignore=(r"^lm_head\.weight$",),
)
"""The head is the embedding; some files repeat it."""
