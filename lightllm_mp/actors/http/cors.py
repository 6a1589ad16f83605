"""Which web pages may call this server from a browser. None, unless their origins were named.

Origins are compared whole and never guessed from the request; credentials (cookies) are never allowed, so a page has
to know a key like any other client.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lightllm_mp.errors import ConfigError

ANY = "*"
METHODS = "GET, POST"
HEADERS = "Authorization, Content-Type, X-Request-Id, X-Request-Timeout"
EXPOSED = "Retry-After, X-Request-Id, X-LightLLM-Warning"
MAX_AGE = "600"
"""Seconds a browser may remember the answer to a preflight."""
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d{1,5})?", re.ASCII)


class Origins:
    """The pages that may call. Raises ConfigError for what is no origin."""

    def __init__(self, origins: Sequence[str]) -> None:
        for origin in origins:
            if origin != ANY and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"--cors-allow-origin {origin}: expected * or scheme://host[:port] in lower case",
                    param="cors_allow_origin",
                )
        self._origins = frozenset(origins)

    def __bool__(self) -> bool:
        return bool(self._origins)

    def allowed(self, request: web.Request) -> str | None:
        """What Access-Control-Allow-Origin says to this request; None: nothing."""
        if ANY in self._origins:
            return ANY
        origin = request.headers.get("Origin")
        return origin if origin in self._origins else None

    async def sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """Signal on_response_prepare: every response says whether the page may read it."""
        response.headers["Vary"] = "Origin"
        if allowed := self.allowed(request):
            response.headers["Access-Control-Allow-Origin"] = allowed
            response.headers["Access-Control-Expose-Headers"] = EXPOSED


def preflights(origins: Origins) -> Middleware:
    """Answers a browser's question before a request, for every path alike and without a key: it cannot send one."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        asks = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if not (asks and origins.allowed(request)):
            return await handler(request)
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": METHODS,
                "Access-Control-Allow-Headers": HEADERS,
                "Access-Control-Max-Age": MAX_AGE,
            },
        )

    return middleware
