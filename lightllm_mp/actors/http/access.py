"""One log line per request, without prompts and keys, and the label it is known by."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Collection
from time import monotonic

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lightllm_mp.actors.http.connection import Connection
from lightllm_mp.actors.http.context import LABEL, LIVE
from lightllm_mp.actors.http.metrics import Meter
from lightllm_mp.actors.live import Live

log = logging.getLogger("lightllm_mp.access")

HEADER = "X-Request-Id"
GONE = 499
"""The status logged and counted for a client that left."""
_LABEL = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def observe(meter: Meter, quiet: Collection[Handler], *, write_log: bool) -> Middleware:
    """The outermost middleware. Requests matched to a `quiet` handler are neither logged nor counted."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if isinstance(request.protocol, Connection):
            request.protocol.headers_complete()
        if request.match_info.handler in quiet:
            return await handler(request)
        request[LABEL] = label(request)
        begin, status = monotonic(), 500
        try:
            response = await handler(request)
            status = response.status
            return response
        except (asyncio.CancelledError, ConnectionError):
            status = GONE
            raise
        finally:
            seconds = monotonic() - begin
            meter.answered(status, seconds)
            if write_log:
                log.info("%s", line(request, status, seconds))

    return middleware


def label(request: web.Request) -> str:
    """The client's X-Request-Id if it is harmless, else a new one. Only a label: nothing is looked up by it."""
    given = request.headers.get(HEADER, "")
    return given if _LABEL.fullmatch(given) else secrets.token_hex(8)


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """Signal on_response_prepare: the headers that every response has."""
    response.headers["Server"] = "lightllm-mp"
    if LABEL in request:
        response.headers[HEADER] = request[LABEL]


def line(request: web.Request, status: int, seconds: float) -> str:
    """`label method path status` and, for a generation, tokens and times. The path is percent-encoded as it came."""
    parts = [request[LABEL], request.method, request.rel_url.raw_path[:128], str(status)]
    live: Live | None = request.get(LIVE)
    if live is not None:
        first = live.answers[0]
        parts.append(f"prompt={first.prompt_tokens} cached={first.cached_tokens}")
        parts.append(f"output={sum(len(answer.ids) for answer in live.answers)}")
        if live.scheduled:
            parts.append(f"queue_ms={(live.scheduled - live.started) * 1e3:.1f}")
        if live.first:
            parts.append(f"ttft_ms={(live.first - live.started) * 1e3:.1f}")
    return " ".join([*parts, f"total_ms={seconds * 1e3:.1f}"])
