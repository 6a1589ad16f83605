"""Reading a request's body: bounded in bytes and time, never decompressed."""

from __future__ import annotations

import asyncio

from aiohttp import web

from lightllm_mp.errors import EngineError, PayloadTooLarge, UnsupportedMedia


class RequestTimeout(EngineError):
    """The client did not send its request in time."""

    status = 408
    type = "timeout_error"
    code = "request_timeout"


async def read_body(request: web.Request, *, most: int, seconds: float) -> bytes:
    """The whole body; any content type, chunked or not. `most` is in bytes."""
    if request.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise UnsupportedMedia("a compressed request body is not accepted")
    if (request.content_length or 0) > most:
        raise _too_large(most)
    try:
        async with asyncio.timeout(seconds):
            return await request.read()
    except TimeoutError:
        raise RequestTimeout(f"the body did not arrive within {seconds:g} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(most) from None


def _too_large(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {most} bytes")
