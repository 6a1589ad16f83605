"""Looks names up with the system's resolver, in threads that tenants share.

A look-up cannot be interrupted: its thread ends when the resolver gives up. So a tenant whose names are slow holds its
threads longer than its requests last, and only a bound per tenant leaves threads to others.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from threading import Thread
from typing import Any

from lightllm_mp.actors.http.fair_slots import FairSlots

MOST = 32
"""Look-ups at once, abandoned ones included."""


class NameLookups:
    """At most `most` look-ups at once; more wait for a fair share. A wait that is cancelled is never looked up."""

    def __init__(self, most: int = MOST) -> None:
        self._slots = FairSlots(most)

    async def find(self, tenant: bytes, host: str, port: int, family: int) -> list[Any]:
        """What getaddrinfo returns. Raises OSError."""
        await self._slots.acquire(tenant)
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Any]] = loop.create_future()

        def done(answer: list[Any] | Exception) -> None:
            self._slots.release(tenant)
            if found.done():
                return
            if isinstance(answer, Exception):
                found.set_exception(answer)
            else:
                found.set_result(answer)

        def look_up() -> None:
            answer: list[Any] | Exception
            try:
                answer = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
            except Exception as error:  # UnicodeError for a name that IDNA refuses
                answer = error
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(done, answer)

        try:
            Thread(target=look_up, name="look-up", daemon=True).start()
        except RuntimeError as error:
            self._slots.release(tenant)
            raise OSError(str(error)) from None
        return await found
