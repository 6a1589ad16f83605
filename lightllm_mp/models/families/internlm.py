"""InternLM 7B and 20B: Llama with, in the 7B, biases in the attention projections."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.family import Family, rope_spec, stretched_context
from lightllm_mp.models.spec import ModelSpec


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """`rotary` is the family's own spelling of base and scaling; its type `origin` is plain rope."""
    own = config.get("rotary") or {}
    if own:
        scaling = (
            {"type": "dynamic", "factor": own.get("scaling_factor") or 1.0} if own.get("type") == "dynamic" else {}
        )
        config = {**config, "rope_theta": own.get("base"), "rope_scaling": scaling}
    spec = llama.read_hf(config)
    rope, bias = rope_spec(config, dim=spec.head_dim), bool(config.get("bias", True))
    return msgspec.structs.replace(
        spec, family="internlm", rope=rope, max_context=stretched_context(config, rope), qkv_bias=bias, o_bias=bias
    )


INTERNLM = Family(name="internlm", model_types=("internlm",), read_hf=read_hf, hf_weights=llama.hf_weights)
