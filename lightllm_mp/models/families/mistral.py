"""Mistral: Llama's network, in version 0.1 with a sliding window in every layer; Mixtral: with a mixture of experts."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.expert_rules import with_experts
from lightllm_mp.models.families.common.family import Family
from lightllm_mp.models.spec import ModelSpec, MoeSpec

WINDOW = 4096
"""Mistral's window if the configuration has no key for it; in later versions the key is null."""


def read_hf(config: dict[str, Any], window: int | None = WINDOW) -> ModelSpec:
    window = config.get("sliding_window", window)
    return msgspec.structs.replace(
        llama.read_hf(config), family="mistral", window=None if window is None else int(window)
    )


def read_mixtral(config: dict[str, Any]) -> ModelSpec:
    moe = MoeSpec(
        experts=int(config["num_local_experts"]),
        top_k=int(config["num_experts_per_tok"]),
        intermediate=int(config["intermediate_size"]),
        renormalise=True,
    )
    return msgspec.structs.replace(read_hf(config, window=None), family="mixtral", moe=moe)


def mixtral_weights(spec: ModelSpec) -> list[Param]:
    return with_experts(spec, llama.hf_weights(spec), block="block_sparse_moe", names=("w1", "w3", "w2"))


MISTRAL = Family(
    name="mistral",
    models="Mistral 7B (sliding window)",
    model_types=("mistral",),
    read_hf=read_hf,
    hf_weights=llama.hf_weights,
    gguf_written_as="llama",
)

MIXTRAL = Family(
    name="mixtral",
    models="Mixtral 8x7B, 8x22B",
    model_types=("mixtral",),
    read_hf=read_mixtral,
    hf_weights=mixtral_weights,
    gguf_written_as="llama",
)
