"""StarCoder and SantaCoder (gpt_bigcode): GPT-2 with multi-query attention."""

from __future__ import annotations

from typing import Any

from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families.common.decoder_weights import TensorNames, decoder, heads_apart, linear
from lightllm_mp.models.families.common.family import Family, activation, bos_id, eos_ids, file_dtype, refuse
from lightllm_mp.models.families.common.gguf_rules import ONE_UP, GGUFKeys, gguf_spec, names_in
from lightllm_mp.models.spec import ModelSpec

QKV = "attn.c_attn"
NAMES = TensorNames(
    embed="transformer.wte",
    norm="transformer.ln_f",
    layer="transformer.h.{}.",
    input_norm="ln_1",
    post_norm="ln_2",
    qkv=(QKV,),
    o="attn.c_proj",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
)


def read_hf(config: dict[str, Any]) -> ModelSpec:
    refuse(config, scale_attn_weights=True, add_cross_attention=False)
    hidden, heads = int(config["n_embd"]), int(config["n_head"])
    positions = int(config["n_positions"])
    return ModelSpec(
        family="starcoder",
        vocab=int(config["vocab_size"]),
        hidden=hidden,
        layers=int(config["n_layer"]),
        heads=heads,
        kv_heads=1 if config.get("multi_query", True) else heads,
        head_dim=hidden // heads,
        intermediate=int(config.get("n_inner") or 4 * hidden),
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        rope=None,
        max_context=positions,
        learned_positions=positions,
        eos_ids=eos_ids(config),
        bos_id=bos_id(config),
        file_dtype=file_dtype(config),
        tied=bool(config.get("tie_word_embeddings", True)),
        norm="layer",
        norm_bias=True,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        gated=False,
        activation=activation(config.get("activation_function", "gelu_pytorch_tanh")),
    )


def hf_weights(spec: ModelSpec) -> list[Param]:
    """Without multi-query the file stores query, key and value head by head."""
    transforms = {} if spec.kv_heads == 1 else {QKV: heads_apart(spec.heads)}
    table = (("transformer.wpe", spec.learned_positions),)
    return decoder(spec, NAMES, transforms) + linear("positions", "", table, spec.hidden, False)


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    """The file does not say which gelu it is; llama.cpp computes the tanh form."""
    positions = keys.integer("context_length")
    return gguf_spec(
        keys,
        family="starcoder",
        rope=None,
        learned_positions=positions,
        norm="layer",
        gated=False,
        activation="gelu_tanh",
    )


def gguf_weights(spec: ModelSpec, keys: GGUFKeys) -> list[Param]:
    table = (("position_embd", spec.learned_positions),)
    return decoder(spec, names_in(keys, ONE_UP)) + linear("positions", "", table, spec.hidden, False)


STARCODER = Family(
    name="starcoder",
    models="StarCoder, SantaCoder (gpt_bigcode)",
    model_types=("gpt_bigcode",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("starcoder",),
    read_gguf=read_gguf,
    gguf_weights=gguf_weights,
    ignore=(r"^lm_head\.weight$", r"\.attn\.(masked_)?bias$"),
)
"""Files of tied models may contain an unused head."""
