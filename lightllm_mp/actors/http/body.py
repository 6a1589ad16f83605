"""Reads a request's body: bounded in bytes and time, never decompressed, and charged to whoever sends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from lightllm_mp.actors.front.fair_shares import FairShares
from lightllm_mp.errors import EngineError, InvalidRequest, Overloaded, PayloadTooLarge, UnsupportedMedia

BODIES = 8
"""All bodies may together hold this many times the size limit of one body."""


class RequestTimeout(EngineError):
    """The client did not send its request in time."""

    status = 408
    type = "timeout_error"
    code = "request_timeout"


class ReceivedBody:
    """A body that is being received, or kept while its request is prepared. `payer`: whom its bytes are charged to."""

    def __init__(self, payer: bytes, timer: asyncio.Timeout) -> None:
        self.payer, self.timer = payer, timer
        self.data = bytearray()
        self.size = 0
        """Bytes charged; 0 once it has yielded."""
        self.yielded = False

    def yield_memory(self) -> None:
        """Free its memory for others; its reader gets TimeoutError at its next await."""
        self.yielded = True
        self.data = bytearray()
        if not self.timer.expired():
            self.timer.reschedule(asyncio.get_running_loop().time())


class BodyReader:
    """Reads bodies of at most `most` bytes that arrive within `seconds`, and bounds their total size.

    Any client may use the memory that is free. When it is full, the largest body of the client that holds most yields,
    so a client that holds little always finds room.
    """

    def __init__(self, *, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._bodies = set[ReceivedBody]()
        self._charged = FairShares(BODIES * most)
        """Bytes of each payer."""

    @asynccontextmanager
    async def receive(self, request: web.Request, payer: bytes = b"") -> AsyncIterator[bytes]:
        """The whole body, of any content type, chunked or not. It stays charged to the end of the context, where it may
        still have to yield: raises Overloaded there too."""
        codings = (request.headers.get(name, "").strip().lower() for name in ("Content-Encoding", "Transfer-Encoding"))
        if any(coding not in ("", "identity", "chunked") for coding in codings):
            raise UnsupportedMedia("a compressed request body is not accepted")
        if (request.content_length or 0) > self._most:
            raise self._too_large()
        timer = asyncio.timeout(self._seconds)
        body = ReceivedBody(payer, timer)
        self._bodies.add(body)
        try:
            async with timer:
                data = await self._receive(request, body)
                if not body.yielded:
                    timer.reschedule(None)
                    yield data
        except TimeoutError:
            if not timer.expired():
                raise
            if not body.yielded:
                raise RequestTimeout(f"the body did not arrive within {self._seconds:g} s") from None
        except web.RequestPayloadError as error:
            if isinstance(error.__cause__, MemoryError):
                raise error.__cause__ from None
            raise InvalidRequest("the body is not encoded as its headers say") from None
        finally:
            self._bodies.discard(body)
            self._give_back(body)
        if body.yielded:
            raise Overloaded("too many large bodies at once, and this client's take most memory", retry_after=1.0)

    async def _receive(self, request: web.Request, body: ReceivedBody) -> bytes:
        while (chunk := await request.content.readany()) and not body.yielded:
            body.data += chunk
            body.size += len(chunk)
            self._charged.take(body.payer, len(chunk))
            if body.size > self._most:
                raise self._too_large()
            self._make_room()
        data = bytes(body.data)
        body.data = bytearray()
        return data

    def _make_room(self) -> None:
        while self._charged.total > self._charged.most:
            payer = self._charged.largest()
            largest = max((body for body in self._bodies if body.payer == payer), key=lambda body: body.size)
            self._give_back(largest)
            largest.yield_memory()

    def _give_back(self, body: ReceivedBody) -> None:
        self._charged.give_back(body.payer, body.size)
        body.size = 0

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is larger than {self._most} bytes")
