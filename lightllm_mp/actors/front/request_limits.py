"""Admission limits: live requests in total and per tenant, and the Retry-After estimate."""

from __future__ import annotations

import math
from time import monotonic

from lightllm_mp.actors.front.fair_shares import FairShares

DRAIN_WINDOW = 10.0
"""Time constant of the measured drain rate, in seconds."""
RETRY_LEAST, RETRY_MOST = 1.0, 60.0
RETRY_UNKNOWN = 5.0
"""Used while nothing has finished yet. All in seconds."""


class RequestLimits:
    """Counts live requests, at most `most`, of which each of the `tenants` (API keys) has a fair share."""

    def __init__(self, most: int, tenants: int = 1) -> None:
        self.most = most
        self._shares = FairShares(most, max(tenants, 1))
        self._busy, self._since = 0.0, 0.0
        """Seconds of past busy periods (some request live), and the start of the current one (monotonic)."""
        self._rate = DrainRate(0.0)

    @property
    def live(self) -> int:
        """Requests that have entered and not left."""
        return self._shares.total

    def refusal(self, tenant: bytes) -> str:
        """FULL or OVER_SHARE if another request of this tenant must be refused, else empty."""
        return self._shares.refusal(tenant)

    def enter(self, tenant: bytes) -> None:
        if not self.live:
            self._since = monotonic()
        self._shares.take(tenant)

    def leave(self, tenant: bytes) -> None:
        busy = self._clock()
        self._shares.give_back(tenant)
        if not self.live:
            self._busy = busy

    def finished(self) -> None:
        """A request got its final answer."""
        self._rate.finished(self._clock())

    def retry_after(self) -> float:
        """Seconds until the live requests are done, at the drain rate of busy periods."""
        rate = self._rate.value(self._clock())
        seconds = self.live / rate if rate > 0 else RETRY_UNKNOWN
        return min(max(seconds, RETRY_LEAST), RETRY_MOST)

    def _clock(self) -> float:
        """Busy seconds: the clock stops while nothing is live, because idle time must not lower the rate."""
        return self._busy + (monotonic() - self._since if self.live else 0.0)


class DrainRate:
    """Finished requests per second: an exponentially decaying mean with time constant DRAIN_WINDOW."""

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
