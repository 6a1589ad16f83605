"""Fetches images from clients' URLs: bounded in time, bytes and redirects, never from the internal network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp
from yarl import URL

from lightllm_mp.actors.http.fair_slots import FairSlots
from lightllm_mp.actors.http.security.name_lookups import NameLookups
from lightllm_mp.actors.http.security.url_guard import ForbiddenAddress, PinnedResolver, UrlGuard
from lightllm_mp.config import MultimodalConfig
from lightllm_mp.errors import EngineError, InvalidRequest, PayloadTooLarge

PARAM = "multimodal_params"
MAX_URL = 8192
MAX_HOPS = 3
MAX_AT_ONCE = 256
"""Connections of all requests together. Tenants have fair shares of them."""
PIECE = 65536
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = {"Accept": "image/*, video/*", "Accept-Encoding": "identity", "User-Agent": "lightllm-mp"}


class FetchFailed(InvalidRequest):
    """An image could not be fetched."""

    code = "image_fetch_failed"


class Fetcher:
    """Fetches for all requests of a front. Each fetch has its own session, since no connection is used twice."""

    def __init__(self, config: MultimodalConfig) -> None:
        self._config = config
        self._guard = UrlGuard(config.allow_media_host)
        self._connections, self._lookups = FairSlots(MAX_AT_ONCE), NameLookups()

    async def fetch(self, url: str, take: Callable[[int], None], tenant: bytes = b"") -> bytes:
        """The bytes behind `url`. Calls `take` with the size of every received piece; `take` may raise. `tenant`: whose
        share of connections and look-ups it takes.

        Raises FetchFailed, ForbiddenAddress or PayloadTooLarge. Can be cancelled.
        """
        seconds = self._config.media_timeout
        try:
            address = checked(url)
            async with asyncio.timeout(seconds), self._connections.slot(tenant), self._session(tenant) as session:
                return await self._follow(session, address, take)
        except TimeoutError:
            raise FetchFailed(f"an image was not fetched within {seconds:g} s", param=PARAM) from None
        except EngineError:
            raise
        except (aiohttp.ClientError, OSError, ValueError, IndexError) as error:  # IndexError: from yarl, see checked
            if (judged := _judgement(error)) is not None:
                raise judged from None
            raise FetchFailed("an image could not be fetched", param=PARAM) from None

    async def _follow(self, session: aiohttp.ClientSession, url: URL, take: Callable[[int], None]) -> bytes:
        for _ in range(MAX_HOPS + 1):
            self._guard.check_literal(url.host or "")
            async with session.get(url, allow_redirects=False, headers=HEADERS) as response:
                if response.status not in REDIRECTS:
                    return await self._body(response, take)
                url = checked(str(url.join(URL(response.headers.get("Location", "")))))
        raise FetchFailed(f"an image's URL redirects more than {MAX_HOPS} times", param=PARAM)

    async def _body(self, response: aiohttp.ClientResponse, take: Callable[[int], None]) -> bytes:
        if response.status != 200:
            raise FetchFailed(f"an image's URL answers with status {response.status}", param=PARAM)
        if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise FetchFailed("an image's URL answers with compressed data", param=PARAM)
        most = self._config.max_bytes_per_image
        if (response.content_length or 0) > most:
            raise _too_large(most)
        body = bytearray()
        async for piece in response.content.iter_chunked(PIECE):
            take(len(piece))
            body += piece
            if len(body) > most:
                raise _too_large(most)
        return bytes(body)

    def _session(self, tenant: bytes) -> aiohttp.ClientSession:
        resolver = PinnedResolver(self._guard, self._lookups, tenant)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )


def checked(url: str) -> URL:
    """The parsed URL without its fragment. Raises FetchFailed unless it is a plain http(s) URL."""
    try:
        found = URL(url).with_fragment(None) if len(url) <= MAX_URL else None
        host = found.host if found is not None else None  # yarl parses the host here and may raise
    except (ValueError, IndexError):  # yarl raises IndexError for http://[::]@
        found = host = None
    if found is None or not host or found.scheme not in ("http", "https"):
        raise FetchFailed("an image's URL is not an http or https URL", param=PARAM)
    if found.user is not None or found.password is not None:
        raise FetchFailed("an image's URL must not hold a user name or password", param=PARAM)
    return found


def _judgement(error: BaseException) -> ForbiddenAddress | None:
    """The ForbiddenAddress that aiohttp wrapped when its resolver raised it, if any."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ForbiddenAddress):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _too_large(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"an image is larger than {most} bytes", param=PARAM)
