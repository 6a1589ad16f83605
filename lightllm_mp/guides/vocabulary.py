"""A tokenizer's vocabulary for matchers: the bytes of every token, and the ids that end an answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from lightllm_mp.errors import InvalidGuide
from lightllm_mp.text.tokenizer import Tokenizer


class GuideVocabulary:
    """`size` ids, of which the tokenizer may know fewer; `eos_ids` end an answer."""

    def __init__(self, tokenizer: Tokenizer, size: int, eos_ids: Sequence[int]) -> None:
        if tokenizer.rule is None:
            raise InvalidGuide("the tokens of this model do not stand for fixed bytes: it takes no constraints")
        ends = [token for token in eos_ids if 0 <= token < size]
        if not ends:
            raise InvalidGuide("this model has no end-of-sequence id: it takes no constraints")
        known = min(size, tokenizer.vocab_size)
        self.size = size
        self.words = -(-size // 32)
        self.eos_bits = mask_of(ends, self.words)
        self.pieces = [tokenizer.token_bytes(token) for token in range(known)] + [b""] * (size - known)
        special = [token for token in tokenizer.special_ids if token < size]
        wrapper = TokenizerWrapper(_Pieces(tokenizer, self.pieces, sorted({*special, *ends}), ends[0]))
        self.ll = LLTokenizer(wrapper, n_vocab=size, eos_token=ends, slices=LLTokenizer.json_slices())

    def piece(self, token: int) -> bytes:
        return self.pieces[token] if 0 <= token < self.size else b""


class _Pieces:
    """The interface that TokenizerWrapper needs of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, pieces: list[bytes], special: list[int], eos_id: int) -> None:
        self.tokens, self.special_token_ids = pieces, special
        self.eos_token_id, self.bos_token_id = eos_id, tokenizer.bos_id
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        utf8 = text if isinstance(text, str) else text.decode("utf-8", "replace")
        return self._tokenizer.encode(utf8, add_special_tokens=False).tolist()


def mask_of(ids: Sequence[int], words: int) -> np.ndarray:
    """uint32 [words] with the bits of `ids`."""
    bits = np.zeros(words * 32, np.uint8)
    bits[list(ids)] = 1
    return np.packbits(bits, bitorder="little").view("<u4")
