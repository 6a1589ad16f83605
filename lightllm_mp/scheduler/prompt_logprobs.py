"""Logprobs of a prompt's tokens, put together from the chunks in which the prompt is computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightllm_mp.messages import ImageSpan, PromptLogprobs
from lightllm_mp.plan import Ints


class OwedLogprobs:
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

    def message(self, rid: int, prompt: Ints, spans: Sequence[ImageSpan] = ()) -> PromptLogprobs:
        """The text of the prompt: what stands in the `spans` of images is left out, and so is the first token's
        logprob. RuntimeError when the worker left tokens out."""
        if self._left:
            raise RuntimeError(f"sequence {rid}: {self._left} of {self._tokens} prompt logprobs are missing")
        text = np.ones(len(prompt), np.bool_)
        for span in spans:
            text[span.start : span.end] = False
        ids = np.ascontiguousarray(prompt[text], "<i4").tobytes()
        columns = [b"".join(part[column] for part in self._parts) for column in range(3)]
        if spans and self._tokens:
            told = np.flatnonzero(text)[1:] - 1
            columns = [_lines(column, self._tokens, told) for column in columns]
        logprobs, top_ids, top_logprobs = columns
        return PromptLogprobs(rid, ids, logprobs, self._top_n, top_ids, top_logprobs)


def _lines(column: bytes, lines: int, wanted: NDArray[np.int64]) -> bytes:
    """Some of a column's lines of equal length."""
    return np.frombuffer(column, "<i4").reshape(lines, len(column) // 4 // lines)[wanted].tobytes()
