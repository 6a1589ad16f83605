"""Qwen3: Llama with norms on query and key heads."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.decoder_weights import WITHOUT_HEAD, qk_norms
from lightllm_mp.models.families.common.family import INV_FREQ, Family
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys, gguf_spec, plain_weights
from lightllm_mp.models.families.qwen.qwen2 import windowed
from lightllm_mp.models.spec import ModelSpec


def read_hf(config: dict[str, Any]) -> ModelSpec:
    return msgspec.structs.replace(windowed(llama.read_hf(config), config), family="qwen3", head_norm="rms")


def hf_weights(spec: ModelSpec) -> list[Param]:
    return llama.hf_weights(spec) + qk_norms(spec)


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    return gguf_spec(keys, family="qwen3", head_norm="rms")


QWEN3 = Family(
    name="qwen3",
    models="Qwen3 0.6B to 32B",
    model_types=("qwen3",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("qwen3",),
    read_gguf=read_gguf,
    gguf_weights=plain_weights,
    ignore=(INV_FREQ, r"^lm_head\.weight$"),
    spellings=WITHOUT_HEAD,
)
