"""Mixtral: Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.expert_rules import with_experts
from lightllm_mp.models.families.common.family import Family
from lightllm_mp.models.spec import ModelSpec, MoeSpec


def read_hf(config: dict[str, Any]) -> ModelSpec:
    window = config.get("sliding_window")
    moe = MoeSpec(
        experts=int(config["num_local_experts"]),
        top_k=int(config["num_experts_per_tok"]),
        intermediate=int(config["intermediate_size"]),
        renormalise=True,
    )
    return msgspec.structs.replace(
        llama.read_hf(config), family="mixtral", moe=moe, window=None if window is None else int(window)
    )


def hf_weights(spec: ModelSpec) -> list[Param]:
    return with_experts(spec, llama.hf_weights(spec), block="block_sparse_moe", names=("w1", "w3", "w2"))


MIXTRAL = Family(
    name="mixtral",
    models="Mixtral 8x7B, 8x22B",
    model_types=("mixtral",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_written_as="llama",
)
