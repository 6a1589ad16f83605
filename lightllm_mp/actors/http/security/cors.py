"""CORS preflight responses for pages of other origins (see origins.py). Credentials (cookies) are never allowed, so a
page must know a key like any other client."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lightllm_mp.actors.http.security.origins import Origins

METHODS = "GET, POST"
HEADERS = "Authorization, Content-Type, X-Api-Key, Anthropic-Version, Anthropic-Beta, X-Request-Id, X-Request-Timeout"
MAX_AGE = "600"
"""Seconds for which a browser may cache a preflight response."""


def preflights(origins: Origins) -> Middleware:
    """Middleware that answers preflights on every path without a key, because a browser cannot send one with them."""

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
