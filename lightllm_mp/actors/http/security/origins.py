"""The origins whose web pages may call this server from a browser. None, unless they were named.

Origins are compared whole and never guessed from the request. Imports no HTTP library: mistakes are known before any
start.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightllm_mp.errors import ConfigError

if TYPE_CHECKING:
    from aiohttp import web

ANY = "*"
EXPOSED = "Retry-After, X-Request-Id, X-LightLLM-Warning"
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
