"""How many tokens are drafted: as many as pay, by the time that steps take and the share of drafts that came true."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FIRST_RATE, FIRST_WEIGHT = 0.7, 1.0
"""The rate of accepted drafts that is expected of a new sequence, and how many tried tokens that counts as."""
FORGET, RECOVER = 0.8, 0.98
"""What remains of earlier tries after another one, and after a step that drafted nothing for want of hope."""
SMOOTH = 0.2
"""Share of the newest step in the time of its size."""


class StepTimes:
    """Mean times of steps by their tokens. Sizes up to 16 have an entry each, larger ones one for each quarter of a
    power of two."""

    def __init__(self) -> None:
        self._times: dict[int, tuple[float, float]] = {}
        """(tokens, seconds), by entry."""
        self._known: tuple[Floats, Floats] | None = None

    def add(self, tokens: int, seconds: float) -> None:
        if seconds <= 0:
            return
        shift = max(0, tokens.bit_length() - 5)
        entry = tokens >> shift << shift
        size, time = self._times.get(entry, (float(tokens), seconds))
        self._times[entry] = size + SMOOTH * (tokens - size), time + SMOOTH * (seconds - time)
        self._known = None

    def at(self, tokens: float) -> float:
        """Seconds. A size that was never seen is taken to be as fast as the nearest one, so that it is tried."""
        if not self._times:
            return 0.0
        if self._known is None:
            points = np.array([self._times[entry] for entry in sorted(self._times)])
            self._known = points[:, 0], np.maximum.accumulate(points[:, 1])
        return float(np.interp(tokens, *self._known))

    def share(self, tokens: float, more: float) -> float:
        """What one of `more` tokens adds to a step of `tokens`, as a share of its time."""
        time = self.at(tokens)
        return max(self.at(tokens + more) - time, 0.0) / (more * time) if time else 0.0


class Acceptance:
    """The rate at which the drafts of each row come true; older tries count less."""

    def __init__(self, rows: int) -> None:
        self._life = np.zeros(rows, np.int64)
        self._right, self._tried = np.zeros(rows), np.zeros(rows)

    def rates(self, rows: NDArray[np.int64], lives: NDArray[np.int64]) -> Floats:
        """Of the sequences with these lives."""
        new = rows[self._life[rows] != lives]
        self._right[new] = self._tried[new] = 0.0
        self._life[rows] = lives
        return (FIRST_WEIGHT * FIRST_RATE + self._right[rows]) / (FIRST_WEIGHT + self._tried[rows])

    def add(self, rows: NDArray[np.int64], drafted: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        """The first `right` of a row's `drafted` tokens came true. Behind the first wrong one nothing is known."""
        self._right[rows] = FORGET * self._right[rows] + right
        self._tried[rows] = FORGET * self._tried[rows] + np.minimum(right + 1, drafted)

    def recover(self, rows: NDArray[np.int64]) -> None:
        """Rows that were not worth a draft may be worth one later."""
        self._right[rows] *= RECOVER
        self._tried[rows] *= RECOVER


def depths(rates: Floats, most: int, cost: float) -> NDArray[np.int64]:
    """For each row the number of draft tokens, at most `most`, that are worth their `cost`: a token with k before it is
    worth rate ** (k + 1) tokens, and costs so many."""
    if cost <= 0:
        return np.full(len(rates), most)
    with np.errstate(divide="ignore"):
        deep = np.log(min(cost, 1.0)) / np.minimum(np.log(np.clip(rates, 0.0, 1.0)), -1e-9)
    return np.clip(deep, 0, most).astype(np.int64)
