"""API keys. With a key set every route needs one that does not call itself public, existing or not."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lightllm_mp.config import HttpConfig
from lightllm_mp.errors import ConfigError, Unauthorized

ENVIRONMENT = "LIGHTLLM_MP_API_KEYS"
"""Keys separated by commas or white space."""
_BEARER = re.compile(r"bearer +(\S+)\s*", re.IGNORECASE | re.ASCII)


def load_keys(config: HttpConfig, environment: Mapping[str, str]) -> frozenset[bytes]:
    """SHA-256 digests of all keys. Raises ConfigError if keys were asked for and none is there."""
    keys = re.split(r"[,\s]+", environment.get(ENVIRONMENT, ""))
    if config.api_key_file is not None:
        try:
            lines = Path(config.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file cannot be read: {type(error).__name__}") from None
        keys += [line.strip() for line in lines if not line.lstrip().startswith("#")]
    digests = frozenset(_digest(key) for key in keys if key)
    if not digests and (config.api_key_file is not None or ENVIRONMENT in environment):
        raise ConfigError("no API key in --api-key-file or " + ENVIRONMENT)
    return digests


def guard(keys: Collection[bytes], public: Collection[Handler]) -> Middleware:
    """Lets a request through that has a key or was matched to a public handler."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if keys and request.match_info.handler not in public and not _known(request, keys):
            raise Unauthorized("a valid API key is needed: Authorization: Bearer KEY")
        return await handler(request)

    return middleware


def _known(request: web.Request, keys: Collection[bytes]) -> bool:
    found = _BEARER.fullmatch(request.headers.get("Authorization", ""))
    digest = _digest(found[1] if found else "")
    return sum(hmac.compare_digest(digest, key) for key in keys) > 0  # no early exit


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
