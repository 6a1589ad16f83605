"""The position of one answer in its grammar, and the masks of many answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray

from lightllm_mp.guides.vocabulary import GuideVocabulary, mask_of

Bits = NDArray[np.uint32]


class GuideMatcher:
    """One answer. Its state depends only on the ids: the same ids lead to the same state.

    `after`: the answer is free until it has this text. White space behind it belongs to the free part. With `jump`,
    text that the grammar forces is taken in the tokenizer's tokens.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: GuideVocabulary,
        *,
        after: str = "",
        ignore_eos: bool = False,
        jump: bool = False,
    ) -> None:
        self.ll = matcher
        self.count = 0
        """Number of ids taken."""
        self.ignore_eos = ignore_eos
        """The answer ends only if it cannot go on."""
        self._vocabulary = vocabulary
        self.forced: deque[int] = deque()
        """With `jump`: the ids that must come next."""
        self._jump = jump
        self._after, self._tail = after.encode("utf-8", "replace"), b""
        if not self._after:
            self._force()

    @property
    def free(self) -> bool:
        """Whether the constraint has not begun."""
        return bool(self._after)

    def take(self, token: int) -> None:
        """Takes the answer's next id. An id that the grammar does not allow leads to a dead end."""
        self.count += 1
        if not self._after:
            self.ll.consume_token(token)
            if self.forced:
                self.forced.popleft()
            if not self.forced:
                self._force()
            return
        text = self._tail + self._vocabulary.piece(token)
        free, found, rest = text.partition(self._after)
        self._tail = free[max(0, len(free) - len(self._after) + 1) :]
        if found:
            self._after = b""
            self._begin(rest.lstrip())
            self._force()

    def _force(self) -> None:
        if self._jump and not self.ll.is_stopped():
            self.forced.extend(self.ll.compute_ff_tokens())

    def _begin(self, text: bytes) -> None:
        """Begins the grammar with `text`, which came in one token with the free part, if that is possible."""
        ids = self._vocabulary.ll.greedy_tokenize(text.decode("utf-8", "replace")) if text else []
        if ids and self.ll.validate_tokens(ids) == len(ids):
            self.ll.consume_tokens(ids)


class MaskWriter:
    """Computes the masks of many answers at once, on `threads` threads."""

    def __init__(self, vocabulary: GuideVocabulary, threads: int) -> None:
        self._vocabulary = vocabulary
        self._executor = LLExecutor(num_threads=max(1, threads))

    def masks(self, matchers: Sequence[GuideMatcher | None]) -> Bits:
        """uint32 [n, words]: the ids that may come next, the lowest bit first. None: every id. A row without a bit is a
        dead end: the grammar became too complex, or took an id that it does not allow."""
        words = self._vocabulary.words
        bits = np.full((len(matchers), words), 0xFFFF_FFFF, "<u4")
        held = [(m, line) for line, m in enumerate(matchers) if m is not None and not m.free]
        if held:
            pairs = [(matcher.ll, line) for matcher, line in held]
            self._executor.unsafe_compute_mask_ptr(pairs, bits.ctypes.data, words * 4, len(bits))
        for matcher, line in held:
            if matcher.ll.is_error():
                bits[line] = 0
            elif matcher.forced:
                bits[line] = mask_of([matcher.forced[0]], words)
            elif matcher.ignore_eos:
                self._keep_going(bits[line])
        return bits

    def _keep_going(self, bits: Bits) -> None:
        """Removes the ids that end an answer from a row with other ids."""
        others = bits & ~self._vocabulary.eos_bits
        if others.any():
            bits[:] = others
