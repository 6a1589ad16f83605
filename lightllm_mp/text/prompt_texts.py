"""The texts of a prompt's tokens, beside their logprobs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from msgspec.structs import replace

from lightllm_mp.messages import PromptLogprobs
from lightllm_mp.text.detokenizer import IncrementalText
from lightllm_mp.text.tokenizer import Tokenizer

PIECE = 512
"""Most tokens of a message: with 20 alternatives of 256 bytes each it has 3 MB."""


class PromptTexts:
    """Adds texts to the pieces of one prompt's logprobs. Joined they are its text, with special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = IncrementalText(tokenizer, skip_special_tokens=False)

    def of(self, piece: PromptLogprobs) -> Iterator[PromptLogprobs]:
        """The piece with its texts, cut into smaller ones."""
        ids = np.frombuffer(piece.ids, "<i4")
        without = len(ids) - len(piece.logprobs) // 4
        width = 4 * piece.top_n
        for first in range(0, max(len(ids), 1), PIECE):
            last = min(first + PIECE, len(ids))
            low, high = max(first - without, 0), last - without
            top_ids = piece.top_ids[width * low : width * high]
            more = piece.more or last < len(ids)
            yield replace(
                piece,
                ids=piece.ids[4 * first : 4 * last],
                logprobs=piece.logprobs[4 * low : 4 * high],
                top_ids=top_ids,
                top_logprobs=piece.top_logprobs[width * low : width * high],
                more=more,
                texts=self._texts(ids[first:last].tolist(), whole=not more),
                top_texts=tuple(map(self._alone, np.frombuffer(top_ids, "<i4").tolist())),
            )

    def _texts(self, ids: list[int], *, whole: bool) -> tuple[str, ...]:
        texts = [self._text.push(token) for token in ids]
        if whole and texts:
            texts[-1] += self._text.finish()
        return tuple(texts)

    def _alone(self, token: int) -> str:
        return self._tokenizer.decode([token], skip_special_tokens=False)
