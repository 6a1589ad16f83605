"""Without a key on a loopback address or with --allowed-host: serves loopback names only, from loopback pages.

A web page can make the browser of this machine send requests here: to the port itself, with the page's own `Origin`, or
to a name of the page's that resolves to 127.0.0.1 (DNS rebinding), with that name as `Host`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lightllm_mp.actors.http.security.origins import Origins
from lightllm_mp.actors.http.sockets.bind import is_loopback
from lightllm_mp.config import HttpConfig
from lightllm_mp.errors import Forbidden

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.ASCII)
REMEDY = "the server has no API key: it serves loopback names and those of --allowed-host"


class HostNotAllowed(Forbidden):
    """`Host` is neither a loopback name nor one that the operator allows."""

    code = "host_not_allowed"


class OriginNotAllowed(Forbidden):
    """A web page of another host sent the request."""

    code = "origin_not_allowed"


def local_only(config: HttpConfig, keys: int, origins: Origins) -> Middleware | None:
    """Middleware that raises HostNotAllowed or OriginNotAllowed; None with `keys`, or if other machines reach the port.

    In a container the server listens on all addresses and its port may be published on the host's loopback address: it
    cannot see that. `--allowed-host` says so.

    `origins`: further pages that may call this server.
    """
    if keys or not (is_loopback(config.host) or config.allowed_host):
        return None
    names = config.allowed_host

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not all(_local(host, names) for host in request.headers.getall("Host", ())):
            raise HostNotAllowed(f"{REMEDY}; the request's Host is another")
        for origin in request.headers.getall("Origin", ()):
            scheme, _, host = origin.partition("://")
            if not (origins.allowed(request) or (scheme in ("http", "https") and _local(host, names))):
                raise OriginNotAllowed(f"{REMEDY}; the request's Origin is another")
        return await handler(request)

    return middleware


def _local(host: str, names: Sequence[str]) -> bool:
    """Whether `host`, with or without a port, is a loopback name or address or one of `names` (in lower case)."""
    found = _HOST.fullmatch(host.lower())
    if found is None:
        return False
    name = found[1].strip("[]").rstrip(".")
    return is_loopback(name) or name in names
