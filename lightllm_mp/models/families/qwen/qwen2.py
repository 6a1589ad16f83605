"""Qwen2 and 2.5: Llama with biases on queries, keys and values; also reward models and one-label classifiers."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.decoder_weights import WITHOUT_HEAD, linear
from lightllm_mp.models.families.common.family import INV_FREQ, Family
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys, gguf_spec, plain_weights
from lightllm_mp.models.spec import ModelSpec, PoolingSpec

MLP_REWARD = "Qwen2ForRewardModel"


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """`architectures` identifies a reward model with an MLP before the score."""
    kinds = config.get("architectures") or ()
    if "Qwen2ForProcessRewardModel" in kinds:
        raise ModelError("process reward models (a score per step) are not supported")
    spec = llama.read_hf({**config, "attention_bias": False, "mlp_bias": False})
    return msgspec.structs.replace(
        windowed(spec, config),
        family="qwen2",
        qkv_bias=True,
        pooling=PoolingSpec(task="score", width=1, head="relu") if MLP_REWARD in kinds else None,
    )


def windowed(spec: ModelSpec, config: dict[str, Any]) -> ModelSpec:
    """Qwen2 and 3 have the window from layer `max_window_layers` on, if `use_sliding_window` is set."""
    window = config.get("sliding_window") if config.get("use_sliding_window", False) else None
    first = int(config.get("max_window_layers", 28))
    if window is None or first >= spec.layers:
        return msgspec.structs.replace(spec, window=None)
    return msgspec.structs.replace(spec, window=int(window), global_layers=tuple(range(first)))


def hf_weights(spec: ModelSpec) -> list[Param]:
    params = llama.hf_weights(spec)
    if spec.pooling is None or spec.pooling.head != "relu":
        return params
    inner = linear("score_in", "", (("score.0", spec.hidden),), spec.hidden, True)
    return params + inner + linear("score", "", (("score.2", 1),), spec.hidden, True)


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    return gguf_spec(keys, family="qwen2")


QWEN2 = Family(
    name="qwen2",
    models="Qwen1.5, Qwen2, Qwen2.5, Qwen2 reward models",
    model_types=("qwen2",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("qwen2",),
    read_gguf=read_gguf,
    gguf_weights=plain_weights,
    ignore=(INV_FREQ, r"^lm_head\.weight$"),
    spellings=WITHOUT_HEAD,
)
"""Reward checkpoints and tied models may contain an unused head."""
