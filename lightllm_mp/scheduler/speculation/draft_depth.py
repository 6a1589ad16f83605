"""How many tokens are drafted: as many as pay, by the time that steps take and the share of drafts that came true."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FIRST_RATE, FIRST_WEIGHT, LEAST_RATE = 0.6, 1.0, 0.2
"""The rate of accepted drafts that is expected of the first sequences, how many tried tokens the expected rate counts
as, and the least that is expected of a new sequence."""
LEARN = 0.02
"""Share of the newest draft in what is expected of sequences to come."""
SUREST = 0.98
"""No sequence is surer than that."""
CHANCES = np.array([1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05])
"""Chances to come true from which on a token is drafted, of which a step takes the best."""
FORGET, RECOVER = 0.8, 0.98
"""What remains of earlier tries after another one, and after a step that drafted nothing for want of hope."""
KEPT, TRIES = 8, 3
"""Times of a size that are kept, and that it takes to know it."""
STALE = 256
"""Steps after which a size that did not occur is less well known."""


class StepTimes:
    """Times of steps by their tokens: the least of the last ones, since a step is disturbed at times and then slower.
    Sizes below 16 have an entry each, larger ones one for each eighth of a power of two."""

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
        """Sizes that did not occur of late lose their oldest time, so that they are tried again."""
        for entry in self._times.keys() - self._used:
            self._times[entry].popleft()
        self._times = {entry: times for entry, times in self._times.items() if times}
        self._used.clear()

    def at(self, tokens: NDArray[np.int64]) -> Floats:
        """Seconds of steps of so many tokens. A size that has not come TRIES times is taken to be as fast as the next
        one, so that it is tried."""
        if self._known is None:
            seen = sorted(entry for entry, times in self._times.items() if len(times) >= TRIES)
            least = np.array([min(self._times[entry]) for entry in seen])
            self._known = np.array(seen, np.float64), np.maximum.accumulate(least)
        return np.interp(tokens, *self._known) if len(self._known[0]) else np.ones(len(tokens))


class Acceptance:
    """The rate at which the drafts of each row come true; older tries count less."""

    def __init__(self, rows: int) -> None:
        self._life = np.zeros(rows, np.int64)
        self._right, self._tried = np.zeros(rows), np.zeros(rows)
        self._expected = FIRST_RATE

    def rates(self, rows: NDArray[np.int64], lives: NDArray[np.int64]) -> Floats:
        """Of the sequences with these lives."""
        new = rows[self._life[rows] != lives]
        self._right[new] = self._tried[new] = 0.0
        self._life[rows] = lives
        rates = (FIRST_WEIGHT * self._expected + self._right[rows]) / (FIRST_WEIGHT + self._tried[rows])
        return np.minimum(rates, SUREST)

    def add(self, rows: NDArray[np.int64], drafted: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        """The first `right` of a row's `drafted` tokens came true. Behind the first wrong one nothing is known."""
        self._right[rows] = FORGET * self._right[rows] + right
        tried = np.minimum(right + 1, drafted)
        self._tried[rows] = FORGET * self._tried[rows] + tried
        for rate in (right / tried).tolist():
            self._expected = max(LEAST_RATE, self._expected + LEARN * (rate - self._expected))

    def recover(self, rows: NDArray[np.int64]) -> None:
        """Rows that were not worth a draft may be worth one later."""
        self._right[rows] *= RECOVER
        self._tried[rows] *= RECOVER


def depths(rates: Floats, most: int, least: Floats) -> NDArray[np.int64]:
    """How many tokens rows with these `rates` [n] draft, at most `most`, if a token is drafted where its chance to come
    true is at least `least` [m]: int64 [m, n]. The k-th one's chance is rate ** k."""
    deep = np.log(least)[:, None] / np.log(rates)
    return np.clip(deep, 0, most).astype(np.int64)


def best_depths(rates: Floats, most: int, rows: int, times: StepTimes) -> NDArray[np.int64]:
    """How many tokens each of some of the `rows` of a step drafts, so that it makes most tokens a second."""
    choices = depths(rates, most, CHANCES)
    gained = (rates * (1 - rates**choices) / (1 - rates)).sum(1)
    speed = (rows + gained) / times.at(rows + choices.sum(1))
    return choices[int(speed.argmax())]
