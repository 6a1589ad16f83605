"""How fast requests finish, for the Retry-After of refused ones."""

from __future__ import annotations

import math

DRAIN_WINDOW = 10.0
"""Time constant of the measured drain rate, in seconds."""


class DrainRate:
    """Finished requests per second, an exponentially decaying mean over DRAIN_WINDOW."""

    def __init__(self, now: float) -> None:
        self._begin = self._last = now
        self._sum = 0.0

    def finished(self, now: float) -> None:
        self._sum = self._sum * math.exp((self._last - now) / DRAIN_WINDOW) + 1.0
        self._last = now

    def value(self, now: float) -> float:
        age = max(now - self._begin, 0.1)
        weight = DRAIN_WINDOW * -math.expm1(-age / DRAIN_WINDOW)
        return self._sum * math.exp((self._last - now) / DRAIN_WINDOW) / weight
