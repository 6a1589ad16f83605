"""What a browser is told before a page of another origin calls this server (see origins.py). Credentials (cookies) are
never allowed, so a page has to know a key like any other client."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lightllm_mp.actors.http.security.origins import Origins

METHODS = "GET, POST"
HEADERS = "Authorization, Content-Type, X-Request-Id, X-Request-Timeout"
MAX_AGE = "600"
"""Seconds a browser may remember the answer to a preflight."""


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
