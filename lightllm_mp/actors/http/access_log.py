"""The access log: one line per request, without prompts and keys; and the request's label (X-Request-Id)."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from time import monotonic
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.http.context import FAILURE, LABEL, LIVE, TENANT, is_anthropic
from lightllm_mp.actors.http.live_group import LiveGroup
from lightllm_mp.actors.http.metrics import HttpMetrics
from lightllm_mp.actors.http.sockets.connection import Connection

log = logging.getLogger("lightllm_mp.access")

HEADER = "X-Request-Id"
GONE = 499
"""The status logged and counted for a client that disconnected."""
BARE = ("request", "method", "path", "status")
Record = Callable[[web.Request, int, float, float], None]
"""Of a request its status, and when it began and ended (monotonic, seconds)."""
_LABEL = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def observe(
    meter: HttpMetrics, quiet: Collection[Handler], *, write_log: bool, record: Record | None = None
) -> Middleware:
    """The outermost middleware. Requests matched to a `quiet` handler are neither logged nor counted nor traced.
    `record` traces a request."""

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
            if record is not None:
                record(request, status, begin, begin + seconds)
            if write_log:
                found = fields(request, status, begin, seconds)
                log.info("%s", line(found), extra={"fields": found})

    return middleware


def label(request: web.Request) -> str:
    """The client can come back to its request by it."""
    return checked_label(request.headers.get(HEADER, ""))


def checked_label(given: str) -> str:
    """The client's X-Request-Id if it matches _LABEL, else a new one that nobody can guess."""
    return given if is_label(given) else secrets.token_hex(16)


def is_label(given: str) -> bool:
    return _LABEL.fullmatch(given) is not None


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """on_response_prepare signal: add the headers that every response has."""
    response.headers["Server"] = "lightllm-mp"
    if LABEL in request:
        response.headers[HEADER] = request[LABEL]
        if is_anthropic(request):
            response.headers["request-id"] = request[LABEL]


def fields(request: web.Request, status: int, begin: float, seconds: float) -> dict[str, Any]:
    """The fields of a request's log line, in order: label, method, path, status, and for a generation its token counts
    and the end of each stage. Times are milliseconds since the headers were complete; only `queue_ms` and `ttft_ms`
    count from the end of the body. Of an answer that is resumed, `resumed` names its first request, and stages that
    ended before this one are left out. The path stays percent-encoded."""
    found: dict[str, Any] = {
        "request": request[LABEL],
        "method": request.method[:16],
        "path": request.rel_url.raw_path[:128],
        "status": status,
    }
    live: LiveRequest | LiveGroup | None = request.get(LIVE)
    if live is not None:
        found |= _generation(live, begin)
    failure = live.error.code if live is not None and live.error is not None else request.get(FAILURE)
    if failure is not None:
        found["error"] = failure
    if TENANT in request:
        found["client"] = client(request[TENANT])
    return found | {"total_ms": _ms(seconds)}


def _generation(live: LiveRequest | LiveGroup, begin: float) -> dict[str, Any]:
    first, last = live.answers[0], max(answer.last for answer in live.answers)
    found: dict[str, Any] = {
        "prompt": first.prompt_tokens,
        "cached": first.cached_tokens,
        "output": sum(len(answer.ids) for answer in live.answers),
    }
    if live.scheduled:
        found["queue_ms"] = _ms(live.scheduled - live.started)
    if live.first:
        found["ttft_ms"] = _ms(live.first - live.started)
    stages = {"received_ms": live.started, "scheduled_ms": live.scheduled, "first_ms": live.first, "last_ms": last}
    found |= {name: _ms(moment - begin) for name, moment in stages.items() if moment >= begin}
    if live.started < begin:
        found["resumed"] = live.label
    found["finish"] = ",".join(answer.finish or "none" for answer in live.answers[:8])
    return found


def line(found: Mapping[str, Any]) -> str:
    """The log line: `label method path status`, then the rest as `name=value`."""
    who, method, path, status, *_ = found.values()
    rest = [f"{name}={value}" for name, value in found.items() if name not in BARE]
    return " ".join([f"{who} {method} {path} {status}", *rest])


def client(digest: bytes) -> str:
    """A name for the holder of a key; it does not reveal the key."""
    return sha256(b"client of lightllm-mp" + digest).hexdigest()[:8]


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 1)
