"""The origins whose web pages may call this server from a browser: none, unless the operator names them.

An origin must match in full and is never derived from the request. Imports no HTTP library, so that the start can check
the setting before anything else.
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
    """The allowed origins. Raises ConfigError for an invalid origin."""

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
        """Value of Access-Control-Allow-Origin for this request; None: no such header."""
        if ANY in self._origins:
            return ANY
        origin = request.headers.get("Origin")
        return origin if origin in self._origins else None

    async def sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """on_response_prepare signal: tell the browser whether the page may read this response."""
        response.headers["Vary"] = "Origin"
        if allowed := self.allowed(request):
            response.headers["Access-Control-Allow-Origin"] = allowed
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
