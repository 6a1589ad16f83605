"""StarCoder2: rope, grouped queries, layer norms, biases, and an MLP without gate."""

from __future__ import annotations

from typing import Any

from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families.common.decoder_weights import TensorNames, decoder
from lightllm_mp.models.families.common.family import INV_FREQ, Family, activation, refuse, standard_spec
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys, gguf_spec, plain_weights
from lightllm_mp.models.spec import ModelSpec

NAMES = TensorNames(up=("mlp.c_fc",), down="mlp.c_proj")


def read_hf(config: dict[str, Any]) -> ModelSpec:
    refuse(config, norm_type="layer_norm", mlp_type="default")
    bias, window = bool(config.get("use_bias", True)), config.get("sliding_window")
    return standard_spec(
        config,
        family="starcoder2",
        norm_eps=float(config.get("norm_epsilon", 1e-5)),
        tied=bool(config.get("tie_word_embeddings", True)),
        window=None if window is None else int(window),
        norm="layer",
        norm_bias=True,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        gated=False,
        activation=activation(config.get("hidden_act", "gelu_pytorch_tanh")),
    )


def hf_weights(spec: ModelSpec) -> list[Param]:
    return decoder(spec, NAMES)


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    return gguf_spec(keys, family="starcoder2", norm="layer", gated=False, activation="gelu_tanh")


STARCODER2 = Family(
    name="starcoder2",
    models="StarCoder2 3B, 7B, 15B",
    model_types=("starcoder2",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("starcoder2",),
    read_gguf=read_gguf,
    gguf_weights=plain_weights,
    ignore=(INV_FREQ, r"^lm_head\.weight$"),
)
