"""Draft length: drafts as many tokens as pay off, given step times and the share of drafts that are accepted."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FIRST_RATE, FIRST_WEIGHT, LEAST_RATE = 0.6, 1.0, 0.2
"""The acceptance rate expected of the first sequences, the number of tried tokens that the expected rate counts as, and
the least rate expected of a new sequence."""
LEARN = 0.02
"""Weight of the newest draft in the rate expected of new sequences."""
SUREST = 0.98
"""Upper bound of a sequence's acceptance rate."""
CHANCES = np.array([1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05])
"""Least chances of acceptance for which a token is drafted. A step takes the best of these thresholds."""
FORGET, RECOVER = 0.8, 0.98
"""Factors of a row's earlier tries, after another try and after a step that drafted nothing because of a low rate."""
KEPT, TRIES = 8, 3
"""Times that are kept per size, and number of times needed to know a size."""
STALE = 256
"""A size that does not occur in this many steps loses one time."""


class StepTimes:
    """Step times by number of tokens: the least of the last times, because disturbances make some steps slower. Sizes
    below 16 have an entry each; larger sizes have one entry per eighth of a power of two."""

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        """The last times of each entry, in seconds."""
        self._used: set[int] = set()
        self._steps = 0
        self._known: tuple[Floats, Floats] | None = None

    def add(self, tokens: int, seconds: float) -> None:
        if seconds <= 0:
            return
        shift = max(0, tokens.bit_length() - 4)
        entry = tokens >> shift << shift
        self._times.setdefault(entry, deque(maxlen=KEPT)).append(seconds)
        self._used.add(entry)
        self._steps += 1
        if self._steps % STALE == 0:
            self._forget()
        self._known = None

    def _forget(self) -> None:
        """Drop the oldest time of sizes that did not occur lately, so that they are tried again."""
        for entry in self._times.keys() - self._used:
            self._times[entry].popleft()
        self._times = {entry: times for entry, times in self._times.items() if times}
        self._used.clear()

    def at(self, tokens: NDArray[np.int64]) -> Floats:
        """Seconds of steps of `tokens` tokens. A size with fewer than TRIES times counts as fast as the next known
        size, so that it is tried."""
        if self._known is None:
            seen = sorted(entry for entry, times in self._times.items() if len(times) >= TRIES)
            least = np.array([min(self._times[entry]) for entry in seen])
            self._known = np.array(seen, np.float64), np.maximum.accumulate(least)
        return np.interp(tokens, *self._known) if len(self._known[0]) else np.ones(len(tokens))


class Acceptance:
    """The rate at which the drafts of each row are accepted. Older tries count less."""

    def __init__(self, rows: int) -> None:
        self._life = np.zeros(rows, np.int64)
        self._right, self._tried = np.zeros(rows), np.zeros(rows)
        self._expected = FIRST_RATE

    def rates(self, rows: NDArray[np.int64], lives: NDArray[np.int64]) -> Floats:
        """Rates of `rows`, whose sequences have these lives."""
        new = rows[self._life[rows] != lives]
        self._right[new] = self._tried[new] = 0.0
        self._life[rows] = lives
        rates = (FIRST_WEIGHT * self._expected + self._right[rows]) / (FIRST_WEIGHT + self._tried[rows])
        return np.minimum(rates, SUREST)

    def add(self, rows: NDArray[np.int64], drafted: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        """The first `right` of a row's `drafted` tokens are accepted. Those after the first wrong one tell nothing."""
        self._right[rows] = FORGET * self._right[rows] + right
        tried = np.minimum(right + 1, drafted)
        self._tried[rows] = FORGET * self._tried[rows] + tried
        for rate in (right / tried).tolist():
            self._expected = max(LEAST_RATE, self._expected + LEARN * (rate - self._expected))

    def recover(self, rows: NDArray[np.int64]) -> None:
        """Let rows that were not worth a draft become worth one later."""
        self._right[rows] *= RECOVER
        self._tried[rows] *= RECOVER


def depths(rates: Floats, most: int, least: Floats) -> NDArray[np.int64]:
    """int64 [m, n]: how many tokens rows with `rates` [n] draft, at most `most`, if a token is drafted when its chance
    of acceptance is at least `least` [m]. The chance of the k-th token is rate ** k."""
    deep = np.log(least)[:, None] / np.log(rates)
    return np.clip(deep, 0, most).astype(np.int64)


def best_depths(rates: Floats, most: int, rows: int, times: StepTimes) -> NDArray[np.int64]:
    """The number of tokens that each row with a rate drafts, for most tokens per second in a step of `rows` rows."""
    choices = depths(rates, most, CHANCES)
    gained = (rates * (1 - rates**choices) / (1 - rates)).sum(1)
    speed = (rows + gained) / times.at(rows + choices.sum(1))
    return choices[int(speed.argmax())]
