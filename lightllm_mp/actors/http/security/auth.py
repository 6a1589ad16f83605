"""Checks API keys. Once a key is set, every path needs one, existing or not, except routes declared public.

Every route declares who may call it: any client (public), holders of any key (user), holders of an admin key (admin),
the front of several engines alone (relay). For clients of such a front the front checks keys, and says what they open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, get_args

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lightllm_mp.actors.http.context import RELAYED, TENANT
from lightllm_mp.actors.http.security.keys import ApiKeys, digest, is_known
from lightllm_mp.errors import Forbidden, Unauthorized

Access = Literal["public", "user", "admin", "relay"]
"""Each level opens those before it."""
KEY_HEADER = "X-Api-Key"
"""Anthropic's clients send their key in it."""
NO_KEY = f"a valid API key is needed: Authorization: Bearer KEY, or {KEY_HEADER}: KEY"
_BEARER = re.compile(r"bearer +(\S+)\s*", re.IGNORECASE | re.ASCII)


def guard(keys: ApiKeys, access: Mapping[Handler, Access]) -> Middleware:
    """Middleware that passes a request with the key that its handler needs: any key if there is no handler (404, 405),
    an admin key if the handler is not in `access`."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        match = request.match_info
        needed = "user" if match.http_exception else access.get(match.handler, "admin")
        relayed = request.get(RELAYED)
        if relayed is not None:
            _check_relayed(relayed.access, needed)
        elif needed == "relay":
            raise Forbidden("this is for fronts of several engines")
        elif keys and needed != "public":
            given = given_key(request.headers.get("Authorization", ""), request.headers.get(KEY_HEADER, ""))
            request[TENANT] = _admitted(given, keys, needed)
        return await handler(request)

    return middleware


def _check_relayed(given: str, needed: Access) -> None:
    """Raises Unauthorized or Forbidden."""
    levels = get_args(Access)
    if given in levels and levels.index(given) >= levels.index(needed):
        return
    if given == "public":
        raise Unauthorized(NO_KEY)
    raise Forbidden("this needs an admin key" if needed == "admin" else "this is for fronts of several engines")


def _admitted(given: bytes, keys: ApiKeys, needed: Access) -> bytes:
    """Returns `given`. Raises Unauthorized or Forbidden. Always compares with every key, for constant time."""
    user, admin = is_known(given, keys.users), is_known(given, keys.admins)
    if not (user or admin):
        raise Unauthorized(NO_KEY)
    if needed == "admin" and not admin:
        raise Forbidden("this needs an admin key")
    return given


def given_key(authorization: str, key: str) -> bytes:
    """The digest of a request's key, from its two headers. Raises Unauthorized if they have different ones."""
    found = _BEARER.fullmatch(authorization)
    keys = {found[1] if found else "", key.strip()} - {""}
    if len(keys) > 1:
        raise Unauthorized(f"Authorization and {KEY_HEADER} have different keys")
    return digest(keys.pop() if keys else "")
