"""A semaphore whose slots tenants share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lightllm_mp.actors.front.fair_shares import FairShares


class FairSlots:
    """`most` slots. A tenant above its fair share waits while others find slots; of those that wait, the tenant that
    holds fewest is served first."""

    def __init__(self, most: int) -> None:
        self._shares = FairShares(most)
        self._waiting: dict[bytes, dict[asyncio.Future[None], None]] = {}
        """Per tenant, in order of arrival."""

    @property
    def taken(self) -> int:
        return self._shares.total

    @asynccontextmanager
    async def slot(self, tenant: bytes) -> AsyncIterator[None]:
        await self.acquire(tenant)
        try:
            yield
        finally:
            self.release(tenant)

    async def acquire(self, tenant: bytes) -> None:
        """Wait for a slot. A cancelled wait leaves nothing behind."""
        if not self._shares.refusal(tenant):
            self._shares.take(tenant)
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, {})[future] = None
        try:
            await future
        except asyncio.CancelledError:
            if not self._remove(tenant, future) and not future.cancelled():
                self.release(tenant)  # the slot came in the same turn
            raise

    def release(self, tenant: bytes) -> None:
        self._shares.give_back(tenant)
        while self._waiting:
            chosen = min(self._waiting, key=self._shares.held)
            if self._shares.refusal(chosen):
                return
            future = next(iter(self._waiting[chosen]))
            self._remove(chosen, future)
            if not future.done():  # else its wait was cancelled in this turn
                self._shares.take(chosen)
                future.set_result(None)

    def _remove(self, tenant: bytes, future: asyncio.Future[None]) -> bool:
        """False: it does not wait any more."""
        futures = self._waiting.get(tenant, {})
        if future not in futures:
            return False
        del futures[future]
        if not futures:
            del self._waiting[tenant]
        return True
