"""Prompt look-up: finds where a sequence's last n-gram occurred before, and drafts the ids that followed it there.

The index is a hash table with chains, as in deflate: the newest position behind each n-gram, and for each position the
one before it. It takes at most 16 bytes and O(1) time per token; numpy adds many tokens at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightllm_mp.plan import Ints

NGRAM = 3
"""Number of equal tokens from which on a sequence counts as repeating itself."""
CANDIDATES, SUFFIX = 8, 16
"""Most earlier places that are compared, and the number of tokens compared at each."""
FIRST_SIZE = 1024
WORDS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
FACTORS = np.array(WORDS, np.uint32)
FEW = 16
"""Up to this many new tokens are added one by one."""


class NgramIndex:
    """The index of one sequence. The caller passes all its ids at each call; they only grow."""

    def __init__(self) -> None:
        self._bits = FIRST_SIZE.bit_length() - 1
        self._clear()

    def _clear(self) -> None:
        self._heads = np.full(1 << self._bits, -1, np.int32)
        self._chain = np.full(1 << self._bits, -1, np.int32)
        self._fed = 0
        """Number of ids that the index has seen."""
        self._match = -1
        """Position of the id that followed the last ids at their earlier occurrence; -1: they are new."""

    def propose(self, ids: Ints, most: int) -> Ints:
        """At most `most` ids that may follow `ids` (int32 [n]). Empty: the last ids have not occurred before."""
        new, self._match = ids[self._fed :], self._followed(ids)
        if len(new):
            self._feed(ids)
        if self._match < 0:
            self._match = self._longest(ids)
        return np.resize(ids[self._match :], most) if self._match >= 0 else ids[:0]

    def _followed(self, ids: Ints) -> int:
        """The match, moved on by the ids that came since, if these are the ids that followed it; else -1."""
        start, new = self._match, ids[self._fed :]
        if start < 0 or not np.array_equal(ids[start : start + len(new)], new):
            return -1
        return start + len(new)

    def _feed(self, ids: Ints) -> None:
        """Add the n-grams that now have an id behind them."""
        if len(ids) > len(self._chain):
            match, self._bits = self._match, (len(ids) - 1).bit_length()
            self._clear()
            self._match = match
        start, self._fed = max(self._fed, NGRAM), len(ids)
        if len(ids) - start <= FEW:
            for place in range(start, len(ids)):
                bucket = self._bucket(ids, place)
                self._chain[place], self._heads[bucket] = self._heads[bucket], place
            return
        at = np.arange(start, len(ids), dtype=np.int32)
        buckets = self._buckets(ids[start - NGRAM : -1])
        order = buckets.argsort(kind="stable")
        at, buckets = at[order], buckets[order]
        again = buckets[1:] == buckets[:-1]
        self._chain[at] = self._heads[buckets]
        self._chain[at[1:][again]] = at[:-1][again]
        self._heads[buckets] = at  # among equal buckets the last one stays

    def _buckets(self, ids: Ints) -> NDArray[np.uint32]:
        """uint32 [len(ids) - NGRAM + 1]: the bucket of each n-gram."""
        windows = np.lib.stride_tricks.sliding_window_view(ids.view(np.uint32), NGRAM)
        mixed = (windows * FACTORS).sum(1, dtype=np.uint32)
        return (mixed ^ (mixed >> np.uint32(15))) * FACTORS[0] >> np.uint32(32 - self._bits)

    def _bucket(self, ids: Ints, end: int) -> int:
        """The bucket of the n-gram before position `end`. For a few n-grams, Python is faster than numpy."""
        mixed = sum(token * factor for token, factor in zip(ids[end - NGRAM : end].tolist(), WORDS, strict=True))
        mixed &= 0xFFFF_FFFF
        return ((mixed ^ mixed >> 15) * WORDS[0] & 0xFFFF_FFFF) >> 32 - self._bits

    def _longest(self, ids: Ints) -> int:
        """The earlier place with the longest match of the ids before it, the newest among equals; -1: none."""
        if len(ids) <= NGRAM:
            return -1
        found: list[int] = []
        at = int(self._heads[self._bucket(ids, len(ids))])
        while at >= 0 and len(found) < CANDIDATES:
            found.append(at)
            at = int(self._chain[at])
        if not found:
            return -1
        back = np.arange(1, SUFFIX + 1)
        places = np.array(found)[:, None] - back
        equal = (ids[np.maximum(places, 0)] == ids[np.maximum(len(ids) - back, 0)]) & (places >= 0)
        lengths = np.logical_and.accumulate(equal, axis=1).sum(1)
        best = int(lengths.argmax())
        return found[best] if lengths[best] >= NGRAM else -1
