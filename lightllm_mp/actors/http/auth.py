"""API keys. With a key set every route needs one that does not call itself public, existing or not.

Every route declares who may call it: everybody (public), whoever has a key (user), whoever has an admin key (admin).
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lightllm_mp.actors.http.context import TENANT
from lightllm_mp.config import HttpConfig
from lightllm_mp.errors import ConfigError, Forbidden, Unauthorized

Access = Literal["public", "user", "admin"]
ENVIRONMENT, ADMIN_ENVIRONMENT = "LIGHTLLM_MP_API_KEYS", "LIGHTLLM_MP_ADMIN_KEYS"
"""Keys separated by commas or white space."""
ADMIN_PREFIX = "admin:"
"""A line of the key file that begins so holds an admin key."""
_BEARER = re.compile(r"bearer +(\S+)\s*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Keys:
    """SHA-256 digests of the keys. An admin key opens what a user's key opens, too. False without any key."""

    users: frozenset[bytes] = frozenset()
    admins: frozenset[bytes] = frozenset()

    def __len__(self) -> int:
        return len(self.users | self.admins)


def load_keys(config: HttpConfig, environment: Mapping[str, str]) -> Keys:
    """All keys of the file and the environment. Raises ConfigError if keys were asked for and none is there."""
    users, admins = _split(environment, ENVIRONMENT), _split(environment, ADMIN_ENVIRONMENT)
    for line in _lines(config.api_key_file):
        if line.startswith(ADMIN_PREFIX):
            admins.append(line.removeprefix(ADMIN_PREFIX).strip())
        else:
            users.append(line)
    keys = Keys(_digests(users), _digests(admins))
    if not keys and (config.api_key_file is not None or {ENVIRONMENT, ADMIN_ENVIRONMENT} & environment.keys()):
        raise ConfigError(f"no API key in --api-key-file, {ENVIRONMENT} or {ADMIN_ENVIRONMENT}")
    return keys


def guard(keys: Keys, access: Mapping[Handler, Access]) -> Middleware:
    """Lets a request through that has the key its handler asks for: any key where there is no handler (404, 405), an
    admin key where the handler is not in `access`."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        match = request.match_info
        needed = "user" if match.http_exception else access.get(match.handler, "admin")
        if keys and needed != "public":
            request[TENANT] = _admitted(_given(request), keys, needed)
        return await handler(request)

    return middleware


def _admitted(digest: bytes, keys: Keys, needed: Access) -> bytes:
    """The digest again. Raises Unauthorized or Forbidden. Every key is compared with, whatever the outcome."""
    user, admin = _known(digest, keys.users), _known(digest, keys.admins)
    if not (user or admin):
        raise Unauthorized("a valid API key is needed: Authorization: Bearer KEY")
    if needed == "admin" and not admin:
        raise Forbidden("this needs an admin key")
    return digest


def _lines(file: str | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file cannot be read: {type(error).__name__}") from None
    return [line.strip() for line in lines if not line.lstrip().startswith("#")]


def _split(environment: Mapping[str, str], name: str) -> list[str]:
    return re.split(r"[,\s]+", environment.get(name, ""))


def _digests(keys: Collection[str]) -> frozenset[bytes]:
    return frozenset(_digest(key) for key in keys if key)


def _given(request: web.Request) -> bytes:
    found = _BEARER.fullmatch(request.headers.get("Authorization", ""))
    return _digest(found[1] if found else "")


def _known(digest: bytes, keys: Collection[bytes]) -> bool:
    return sum(hmac.compare_digest(digest, key) for key in keys) > 0  # no early exit


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
