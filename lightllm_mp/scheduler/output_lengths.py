"""Output length prediction for admission: the peak of KV tokens held if sequences end at their predicted lengths.

After "Past-Future Scheduler for LLM Serving under SLA Guarantees" (ASPLOS'25): output lengths are sampled from those of
recently finished requests, given the tokens produced so far, and the worst peak of a few samples has to fit. Three
things differ from the paper. A sequence keeps its draws while it lives, so repeated tests do not wait for a lucky draw.
The sequence's own limit is one more entry and stands for all lengths not yet seen, so an empty window gives the most
cautious prediction. Slots that several sequences share count once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WINDOW = 1000
"""Number of finished lengths that are kept."""
SAMPLES = 4
UNKNOWN_LENGTH = 256
"""Tokens that an answer is expected to go on for, if no known length is longer."""
RESERVE = 0.04
"""Share of KV memory that admission leaves free in case predictions are wrong."""


class OutputLengths:
    """The last WINDOW finished output lengths, in tokens."""

    def __init__(self) -> None:
        self._ring = np.zeros(WINDOW, np.int64)
        self._count = 0
        self._sorted: NDArray[np.int64] | None = None

    def record(self, tokens: int) -> None:
        self._ring[self._count % WINDOW] = tokens
        self._count += 1
        self._sorted = None

    def expected(self, produced: NDArray, limit: NDArray) -> NDArray[np.float64]:
        """Mean of the kept lengths above `produced` [n], else `produced` + UNKNOWN_LENGTH; at most `limit` [n]."""
        lengths = np.sort(self._ring[: min(self._count, WINDOW)])
        sums = np.append(np.cumsum(lengths[::-1])[::-1], 0)
        seen = np.searchsorted(lengths, produced, side="right")
        longer = len(lengths) - seen
        mean = np.where(longer > 0, sums[seen] / np.maximum(longer, 1), produced + UNKNOWN_LENGTH)
        return np.minimum(mean, limit)

    def predict(self, produced: NDArray, limit: NDArray, draws: NDArray) -> NDArray[np.int64]:
        """Final output lengths [samples, n], above `produced` [n] and at most `limit` [n]. `draws` [samples, n] in 0..1
        are quantiles of the kept lengths above `produced`, with `limit` as one more entry at the end."""
        if self._sorted is None:
            finished = np.sort(self._ring[: min(self._count, WINDOW)])
            self._sorted = np.append(finished, np.iinfo(np.int64).max)
        lengths = self._sorted
        seen = np.searchsorted(self._sorted, produced, side="right")
        picks = seen + (draws * (len(lengths) - seen)).astype(np.int64)
        return np.minimum(lengths[picks], limit)


def peak(held: NDArray, left: NDArray, bound: int | None = None) -> int:
    """The most tokens held at once, in the worst sample. A sequence holds `held` [n] tokens now, grows by one token a
    step to at most `bound` tokens, ends after `left` [samples, n] steps and then frees all its tokens.

    Sequences are sorted by `left`, descending. Just before sequence i ends, all up to it have grown by left[i]."""
    keys = (left.astype(np.int64) << 32) + held  # sorting packed integers is much faster than argsort
    keys.sort(axis=1)
    keys = keys[:, ::-1]
    left, held = keys >> 32, keys & 0xFFFF_FFFF
    if bound is not None and (held + left).max(initial=0) > bound:
        grown = np.minimum(held[:, None, :] + left[:, :, None], bound)  # [samples, at the end of, sequence]
        return int(np.tril(grown).sum(axis=2).max(initial=0))
    count = np.arange(1, held.shape[1] + 1)
    return int((np.cumsum(held, axis=1) + count * left).max(initial=0))


def capacity(kv_tokens: int) -> int:
    return kv_tokens - int(kv_tokens * RESERVE)


def most(held: NDArray, left: NDArray, bound: int | None = None) -> int:
    """An upper bound of `peak`, and much cheaper: all sequences hold all their tokens at once."""
    final = held + left
    return int((final if bound is None else np.minimum(final, bound)).sum())
