"""Requests by the name that their client knows, and those whose consumer has left or has everything: they are kept for
a while, for a client that comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lightllm_mp.actors.front.fair_shares import FairShares
from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.front.request_journal import NoJournal, RequestJournal
from lightllm_mp.errors import InvalidRequest, NotFound, SlowReader


class RetainedRequests:
    """Keeps each request for `seconds`, or its own `keep`, then drops it. Where memory is short, or they have more than
    `most` bytes, the oldest of the tenant that keeps most goes first. `on_drop` is told of every request that nobody
    can come back to any more."""

    def __init__(
        self,
        seconds: float,
        journal: RequestJournal | NoJournal,
        on_drop: Callable[[LiveRequest], None],
        most: int,
    ) -> None:
        self.seconds = seconds
        self._journal = journal
        self._on_drop = on_drop
        self._named: dict[tuple[bytes, str], LiveRequest] = {}
        """Live and retained requests; of equal names the newest."""
        self._timers: dict[LiveRequest, asyncio.TimerHandle] = {}
        """The retained ones, in order of arrival."""
        self._bytes = FairShares(most)
        if isinstance(journal, RequestJournal):
            journal.make_room = self.evict

    def __len__(self) -> int:
        return len(self._timers)

    def __contains__(self, live: LiveRequest) -> bool:
        return live in self._timers

    def name(self, live: LiveRequest) -> None:
        """From now on its client finds it."""
        self._named[live.key] = live

    def forget_name(self, live: LiveRequest) -> None:
        """From now on nobody finds it, and it will not be retained."""
        if self._named.get(live.key) is live:
            del self._named[live.key]

    def stored(self) -> list[tuple[bytes, str]]:
        """The tenants and labels of complete requests that are kept for their own time, in order of arrival."""
        return [live.key for live in self._timers if live.keep and not live.open]

    def knows(self, key: tuple[bytes, str]) -> bool:
        """A request of this tenant and label is here."""
        return key in self._named

    def find(self, tenant: bytes, label: str, taken: int = 0) -> LiveRequest:
        """Raises NotFound, or InvalidRequest if it has fewer than `taken` events."""
        live = self._named.get((tenant, label))
        if live is None:
            raise NotFound("no request of this key has this id: it never began, or its time to come back is over")
        if not 0 <= taken <= len(live.order):
            raise InvalidRequest(f"the request has {len(live.order)} events, not {taken}", param="Last-Event-ID")
        return live

    def left(self, live: LiveRequest) -> None:
        """Its consumer has left: retain it, or drop it if it failed or nobody can name it."""
        failed = live.error is not None and not isinstance(live.error, SlowReader)
        if (live.keep or self.seconds) and not failed and self._named.get(live.key) is live:
            self._journal.events(live)
            if live.open:
                self._journal.suspended(live, True)
            self.add(live)
        else:
            self._drop(live)

    def add(self, live: LiveRequest) -> None:
        self._timers[live] = asyncio.get_running_loop().call_later(live.keep or self.seconds, self._expire, live)
        self._bytes.take(live.request.terms.tenant, _weight(live))
        while self._bytes.total > self._bytes.most:
            self.evict()

    def remove(self, live: LiveRequest) -> None:
        """It has a consumer again."""
        self._timers.pop(live).cancel()
        self._bytes.give_back(live.request.terms.tenant, _weight(live))

    def evict(self) -> bool:
        """Drop one request. False: there is none."""
        tenant = self._bytes.largest()
        if tenant is not None:
            self._expire(next(live for live in self._timers if live.request.terms.tenant == tenant))
        return tenant is not None

    def evict_images(self, tenant: bytes | None) -> bool:
        """Drop one request of this tenant that has images. False: there is none."""
        found = next((live for live in self._timers if live.images and live.request.terms.tenant == tenant), None)
        if found is not None:
            self._expire(found)
        return found is not None

    def _expire(self, live: LiveRequest) -> None:
        self.remove(live)
        self._drop(live)

    def _drop(self, live: LiveRequest) -> None:
        self._journal.remove(live)
        self.forget_name(live)
        self._on_drop(live)


def _weight(live: LiveRequest) -> int:
    """Bytes; it does not change while the request is retained."""
    request = live.request
    prompt = len(request.text or "") + len(request.ids or b"") + (request.chat.size if request.chat else 0)
    return 4096 + live.bytes + prompt + len(live.form) + sum(len(upload.data) for upload in live.images)
