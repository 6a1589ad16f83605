"""Mistral: Llama's network, in version 0.1 with a sliding window in every layer."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.family import Family
from lightllm_mp.models.spec import ModelSpec

WINDOW = 4096
"""Window where the configuration has no key for it; in later versions the key is null."""


def read_hf(config: dict[str, Any]) -> ModelSpec:
    window = config.get("sliding_window", WINDOW)
    return msgspec.structs.replace(
        llama.read_hf(config), family="mistral", window=None if window is None else int(window)
    )


MISTRAL = Family(
    name="mistral",
    models="Mistral 7B (sliding window)",
    model_types=("mistral",),
    read_hf=read_hf,
    hf_weights=llama.hf_weights,
    gguf_written_as="llama",
)
