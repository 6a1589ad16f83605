"""Reads a request's body: bounded in bytes and time, never decompressed."""

from __future__ import annotations

import asyncio

from aiohttp import web

from lightllm_mp.errors import EngineError, InvalidRequest, Overloaded, PayloadTooLarge, UnsupportedMedia

BODIES = 8
"""All bodies being received may together hold this many times the size limit of one body."""


class RequestTimeout(EngineError):
    """The client did not send its request in time."""

    status = 408
    type = "timeout_error"
    code = "request_timeout"


class BodyReader:
    """Reads bodies of at most `most` bytes that arrive within `seconds`, and bounds their total size."""

    def __init__(self, *, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._held = 0
        """Bytes of all bodies being received."""

    async def read(self, request: web.Request) -> bytes:
        """The whole body, of any content type, chunked or not."""
        codings = (request.headers.get(name, "").strip().lower() for name in ("Content-Encoding", "Transfer-Encoding"))
        if any(coding not in ("", "identity", "chunked") for coding in codings):
            raise UnsupportedMedia("a compressed request body is not accepted")
        if (request.content_length or 0) > self._most:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                await self._receive(request, body)
        except TimeoutError:
            raise RequestTimeout(f"the body did not arrive within {self._seconds:g} s") from None
        except web.RequestPayloadError as error:
            if isinstance(error.__cause__, MemoryError):
                raise error.__cause__ from None
            raise InvalidRequest("the body is not encoded as its headers say") from None
        finally:
            self._held -= len(body)
        return bytes(body)

    async def _receive(self, request: web.Request, body: bytearray) -> None:
        while chunk := await request.content.readany():
            body += chunk
            self._held += len(chunk)
            if len(body) > self._most:
                raise self._too_large()
            if self._held > BODIES * self._most:
                raise Overloaded("too many large bodies at once", retry_after=1.0)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is larger than {self._most} bytes")
