"""The one rule by which tenants share what is bounded: requests, image bytes, connections, DNS look-ups."""

from __future__ import annotations

from collections import Counter

FULL, OVER_SHARE = "max_live_requests", "tenant_share"
"""Reasons of a refusal, as the metrics name them."""


class FairShares:
    """Divides `most` units among tenants: half is reserved in equal parts, one for each, and any tenant may use the
    other half. A single tenant has all of it. Who makes room instead of refusing asks for the `largest` holder.

    `tenants`: how many there are. If that is unknown (0), or if they are too many for a part each, there is a part for
    every tenant that holds something and one for a newcomer.
    """

    def __init__(self, most: int = 0, tenants: int = 0) -> None:
        self.most = most
        self._tenants = tenants if tenants <= most // 2 or tenants == 1 else 0
        self._held: Counter[bytes] = Counter()
        self.total = 0

    def held(self, tenant: bytes) -> int:
        return self._held.get(tenant, 0)

    def largest(self) -> bytes | None:
        """The tenant that holds most."""
        return max(self._held, key=self._held.__getitem__, default=None)

    def refusal(self, tenant: bytes, amount: int = 1) -> str:
        """FULL or OVER_SHARE if this tenant must not take `amount` more, else empty."""
        if self.total + amount > self.most:
            return FULL
        parts = self._tenants or len(self._held) + (tenant not in self._held) + 1
        own = self.most // (2 * parts) if parts > 1 else 0
        mine = self.held(tenant) + amount
        if mine <= own:
            return ""
        beyond = sum(max(held - own, 0) for other, held in self._held.items() if other != tenant) + mine - own
        return OVER_SHARE if beyond > self.most - own * parts else ""

    def take(self, tenant: bytes, amount: int = 1) -> None:
        """Take without a check."""
        if amount:
            self._held[tenant] += amount
            self.total += amount

    def give_back(self, tenant: bytes, amount: int = 1) -> None:
        self.total -= amount
        self._held[tenant] -= amount
        if not self._held[tenant]:
            del self._held[tenant]
