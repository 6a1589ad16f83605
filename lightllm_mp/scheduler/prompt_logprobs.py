"""Logprobs of a prompt's tokens, joined from the chunks in which the prompt is computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightllm_mp.messages import ImageSpan, PromptLogprobs
from lightllm_mp.plan import Ints

PIECE = 4096
"""Most tokens of a message: with 20 alternatives it has 700 KB."""


class OwedLogprobs:
    """Collects the logprobs of `tokens` prompt tokens (all but the first), each with `top_n` alternatives."""

    def __init__(self, tokens: int, top_n: int) -> None:
        self._tokens, self._top_n = tokens, top_n
        self.clear()

    def clear(self) -> None:
        """Start again, because the prompt is computed again."""
        self._left = self._tokens
        self._parts: list[tuple[bytes, bytes, bytes]] = []

    def add(self, logprobs: bytes, top_ids: bytes, top_logprobs: bytes) -> None:
        """Add the next chunk's columns (float32, int32, float32). Entries after the prompt's last token are dropped."""
        count = min(self._left, len(logprobs) // 4)
        best = 4 * count * self._top_n
        self._parts.append((logprobs[: 4 * count], top_ids[:best], top_logprobs[:best]))
        self._left -= count

    def messages(self, rid: int, prompt: Ints, spans: Sequence[ImageSpan] = ()) -> list[PromptLogprobs]:
        """The logprobs of the prompt's text. Positions in the `spans` of images and the first token's logprob are left
        out. RuntimeError when the worker left tokens out."""
        if self._left:
            raise RuntimeError(f"sequence {rid}: {self._left} of {self._tokens} prompt logprobs are missing")
        text = np.ones(len(prompt), np.bool_)
        for span in spans:
            text[span.start : span.end] = False
        ids = np.ascontiguousarray(prompt[text], "<i4").tobytes()
        columns = [b"".join(part[column] for part in self._parts) for column in range(3)]
        if spans and self._tokens:
            wanted = np.flatnonzero(text)[1:] - 1
            columns = [_take_rows(column, self._tokens, wanted) for column in columns]
        logprobs, top_ids, top_logprobs = columns
        found, width = [], 4 * self._top_n
        # A prompt that has only images gives one empty piece.
        for first in range(0, max(len(ids) // 4, 1), PIECE):
            last = min(first + PIECE, len(ids) // 4)
            low, high = max(first - 1, 0), last - 1  # token 0 has no logprob
            found.append(
                PromptLogprobs(
                    rid,
                    ids[4 * first : 4 * last],
                    logprobs[4 * low : 4 * high],
                    self._top_n,
                    top_ids[width * low : width * high],
                    top_logprobs[width * low : width * high],
                    more=4 * last < len(ids),
                )
            )
        return found


def _take_rows(column: bytes, rows: int, wanted: NDArray[np.int64]) -> bytes:
    """The `wanted` rows of a column of `rows` rows of equal length, in 4-byte values."""
    return np.frombuffer(column, "<i4").reshape(rows, len(column) // 4 // rows)[wanted].tobytes()
