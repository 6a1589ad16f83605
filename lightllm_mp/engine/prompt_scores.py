"""Logprobs of a prompt's tokens, put together from the chunks in which the prompt is computed."""

from __future__ import annotations

import numpy as np

from lightllm_mp.engine.plan import Ints
from lightllm_mp.messages import PromptLogprobs


class PromptScores:
    """For `tokens` prompt tokens (all but the first), each with `top_n` alternatives."""

    def __init__(self, tokens: int, top_n: int) -> None:
        self._tokens, self._top_n = tokens, top_n
        self.clear()

    def clear(self) -> None:
        """The prompt is computed anew."""
        self._left = self._tokens
        self._parts: list[tuple[bytes, bytes, bytes]] = []

    def add(self, logprobs: bytes, top_ids: bytes, top_logprobs: bytes) -> None:
        """The next chunk's columns (float32, int32, float32). What follows the prompt's last token is not wanted."""
        count = min(self._left, len(logprobs) // 4)
        best = 4 * count * self._top_n
        self._parts.append((logprobs[: 4 * count], top_ids[:best], top_logprobs[:best]))
        self._left -= count

    def message(self, rid: int, prompt: Ints) -> PromptLogprobs:
        """RuntimeError when the worker left tokens out."""
        if self._left:
            raise RuntimeError(f"sequence {rid}: {self._left} of {self._tokens} prompt logprobs are missing")
        ids = np.ascontiguousarray(prompt, "<i4").tobytes()
        logprobs, top_ids, top_logprobs = (b"".join(part[column] for part in self._parts) for column in range(3))
        return PromptLogprobs(rid, ids, logprobs, self._top_n, top_ids, top_logprobs)
