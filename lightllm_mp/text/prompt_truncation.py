"""Cuts a prompt that is too long, as LightLLM did in 2024 (`--long-truncation-mode`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightllm_mp.facts import EngineLimits


def longest_kept(limits: EngineLimits, max_new_tokens: int) -> int:
    """Tokens that remain of a prompt that is too long: the answer has room beside them, up to half of the context. A
    model of one row of numbers may append a token of its own."""
    room = min(max_new_tokens, limits.max_context // 2)
    appended = limits.pooled is not None and limits.pooled.end_token >= 0
    return min(limits.max_input, limits.max_context - room) - appended


def truncated(ids: NDArray[np.int32], longest: int, mode: str) -> NDArray[np.int32]:
    """The last `longest` ids of a longer prompt ("head"), or its first and last ones, half each ("center")."""
    first = longest // 2 if mode == "center" else 0
    return np.concatenate((ids[:first], ids[len(ids) - (longest - first) :]))
