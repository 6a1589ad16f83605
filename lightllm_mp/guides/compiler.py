"""Compiles guides within bounds on time and memory, and caches them."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from llguidance import LLMatcher, LLParserLimits

from lightllm_mp.errors import InvalidGuide
from lightllm_mp.guides.grammar import grammar_of, reason
from lightllm_mp.guides.vocabulary import GuideVocabulary
from lightllm_mp.messages import Guide

LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,
    step_max_items=10_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""Compiling a grammar spends about 50,000 units of fuel a millisecond, computing a mask 14,000."""
CACHED = 64
"""Compiled guides in the cache. All answers of a guide share its lexer's states, at most 2 kB each."""


class GuideCompiler:
    """Threads may call it at the same time: the library computes without Python's lock."""

    def __init__(self, vocabulary: GuideVocabulary) -> None:
        self.vocabulary = vocabulary
        self.cache: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def knows(self, guide: Guide) -> bool:
        """Whether `compile` answers at once."""
        return (guide.kind, guide.source) in self.cache

    def compile(self, guide: Guide) -> LLMatcher:
        """A matcher at the beginning of the guide's grammar; the caller copies it. InvalidGuide if the guide is wrong,
        too complex, or allows no answer at all."""
        key = (guide.kind, guide.source)
        with self._lock:
            if (known := self.cache.get(key)) is not None:
                self.cache.move_to_end(key)
                return known
        try:
            matcher = self._compiled(guide)
        except MemoryError:
            raise
        except BaseException as error:
            # A panic of the library is not an Exception, but it concerns only this guide.
            if type(error).__name__ != "PanicException":
                raise
            raise InvalidGuide(f"{guide.kind}: the constraint cannot be compiled") from None
        with self._lock:
            self.cache[key] = matcher
            while len(self.cache) > CACHED:
                self.cache.popitem(last=False)
        return matcher

    def _compiled(self, guide: Guide) -> LLMatcher:
        matcher = LLMatcher(self.vocabulary.ll, grammar_of(guide), log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise InvalidGuide(f"{guide.kind}: {reason(matcher.get_error())}")
        if not self._begins(matcher.deep_copy()):
            raise InvalidGuide(f"{guide.kind}: no answer satisfies the constraint, or it is too complex")
        return matcher

    def forget(self, guide: Guide) -> None:
        """Compiles the guide again next time: an answer reached a dead end, and the lexer that its answers share may
        be full."""
        with self._lock:
            self.cache.pop((guide.kind, guide.source), None)

    def _begins(self, matcher: LLMatcher) -> bool:
        """Whether any first token is allowed."""
        bits = np.zeros(self.vocabulary.words, "<u4")
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        return not matcher.is_error() and bool(bits.any())
