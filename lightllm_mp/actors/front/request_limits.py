"""How many requests may be live at once, how many of them one tenant may have, and when to come again."""

from __future__ import annotations

import math
from collections import Counter
from time import monotonic

FULL, OVER_SHARE = "max_live_requests", "tenant_share"
DRAIN_WINDOW = 10.0
"""Time constant of the measured drain rate, in seconds."""
RETRY_LEAST, RETRY_MOST = 1.0, 60.0
RETRY_UNKNOWN = 5.0
"""Said while nothing has finished yet. All in seconds."""


class RequestLimits:
    """Counts live requests. Half of the `most` is kept for the `tenants` (API keys), the same number for each; the
    other half is for whoever comes. A single tenant has all of it."""

    def __init__(self, most: int, tenants: int = 1) -> None:
        self.most = most
        self._own = most // (2 * tenants) if tenants > 1 else 0
        self._common = most - self._own * tenants
        self._live: Counter[bytes] = Counter()
        self._beyond = 0
        """Requests beyond their tenants' own shares."""
        self._busy, self._since = 0.0, 0.0
        """Seconds with something live before now, and since when it has been so (monotonic)."""
        self._rate = DrainRate(0.0)

    def refusal(self, tenant: bytes) -> str:
        """Why another request of this tenant is refused; empty: it is not."""
        if self._live[tenant] < self._own or self._beyond < self._common:
            return ""
        return FULL if self._live.total() >= self.most else OVER_SHARE

    def enter(self, tenant: bytes) -> None:
        if not self._live:
            self._since = monotonic()
        self._beyond += self._live[tenant] >= self._own
        self._live[tenant] += 1

    def leave(self, tenant: bytes) -> None:
        self._live[tenant] -= 1
        self._beyond -= self._live[tenant] >= self._own
        if not self._live[tenant]:
            self._busy = self._clock()
            self._since = monotonic()
            del self._live[tenant]

    def finished(self) -> None:
        """A request has got its final answer."""
        self._rate.finished(self._clock())

    def retry_after(self) -> float:
        """Seconds until what is live now is done, at the rate measured while there was something to do."""
        rate = self._rate.value(self._clock())
        seconds = self._live.total() / rate if rate > 0 else RETRY_UNKNOWN
        return min(max(seconds, RETRY_LEAST), RETRY_MOST)

    def _clock(self) -> float:
        """Stands still while nothing is live: idle time says nothing about how fast requests finish."""
        return self._busy + (monotonic() - self._since if self._live else 0.0)


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
