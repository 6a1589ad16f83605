"""Answers for a front of several engines: with each answer travels what another engine needs to go on with it.

A request with the operator's relay key is answered in frames (uint8 kind, uint32 little-endian length, payload):

    R  uint16 status, and the headers as a JSON object: the head of the answer
    B  uint32 number of events, and bytes of the body: a client that has them has so many events
    K  nothing is new: the engine is alive
    Z  the answer is complete
    H, F, T, E, P  the record of the request (actors/front/request_journal.py), always ahead of the bytes it tells of

A front that loses its engine sends the frames of the record to another one (`POST /relay`), with the number of events
that its client has, and gets the rest of the answer in the same way. Where no record came, nothing was begun: it sends
the request itself again.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Collection, Iterator, Mapping

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lightllm_mp.actors.http.context import RELAYED, TENANT
from lightllm_mp.actors.http.security.keys import digest, is_known
from lightllm_mp.errors import InvalidRequest

CONTENT_TYPE = "application/vnd.lightllm-mp.relay"
KEY_HEADER, TENANT_HEADER = "X-LightLLM-Relay-Key", "X-LightLLM-Tenant"
"""The relay key; the tenant that the front has found, in hexadecimal digits, empty without keys."""
ACCESS_HEADER = "X-LightLLM-Access"
"""Whom the front asks for: a client without a key (public), with a key (user, the default) or an admin's; or itself
(relay)."""
RECORD = b"HFTEP"
ALIVE_SECONDS = 2.0
"""An engine that has been silent for so long, or twice as long at most, says that it is alive."""
BEHIND = 1 << 20
"""A writer waits while the front has so many bytes still to take."""
_FRAME, _EVENTS, _STATUS = struct.Struct("<cI"), struct.Struct("<I"), struct.Struct("<H")
_TENANT = re.compile(r"(?:[0-9a-f]{64})?", re.ASCII)


def relays(keys: Collection[bytes]) -> Middleware:
    """Middleware that answers requests with one of these keys (SHA-256 digests) in frames. The front has checked who
    asks."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_known(digest(request.headers.get(KEY_HEADER, "")), keys):
            return await handler(request)
        tenant = request.headers.get(TENANT_HEADER, "")
        request[TENANT] = bytes.fromhex(tenant) if _TENANT.fullmatch(tenant) else b""
        answer = request[RELAYED] = RelayedAnswer(request.headers.get(ACCESS_HEADER, "user"))
        await answer.response.prepare(request)
        pump = asyncio.create_task(answer.pump())
        try:
            response = await handler(request)
            if isinstance(response, web.Response):
                answer.head(response.status, response.headers)
                await answer.body(0, bytes(response.body or b""))  # type: ignore[arg-type]
            answer.end()
            await pump
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)  # a front that has left is no error
        return answer.response

    return middleware


class RelayedAnswer:
    """Frames on their way to the front, in the order in which they are put. `access`: what whoever asks may call."""

    def __init__(self, access: str = "user") -> None:
        self.access = access
        self.response = web.StreamResponse()
        self.response.content_type = CONTENT_TYPE
        self._waiting = bytearray()
        self._filled, self._emptied = asyncio.Event(), asyncio.Event()
        self._complete = False
        self._said = True
        """Something since the last beat."""
        self._heart: asyncio.TimerHandle | None = None

    def record(self, frame: bytes) -> None:
        """A frame of the request's record, its kind first."""
        self._put(frame[:1], frame[1:])

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self._put(b"R", _STATUS.pack(status) + msgspec.json.encode(dict(headers)))

    async def body(self, events: int, data: bytes) -> None:
        """Bytes after which the client has so many events. Waits for a slow front."""
        self._put(b"B", _EVENTS.pack(events) + data)
        while len(self._waiting) > BEHIND:
            self._emptied.clear()
            await self._emptied.wait()

    def end(self) -> None:
        self._complete = True
        self._put(b"Z", b"")

    async def pump(self) -> None:
        """Write what is put until the answer is complete."""
        self._beat()
        try:
            while self._waiting or not self._complete:
                await self._filled.wait()
                self._filled.clear()
                data, self._waiting = self._waiting, bytearray()
                self._emptied.set()
                if self._complete:  # one packet with the end, so that the front can use the connection again
                    await self.response.write_eof(bytes(data))
                else:
                    await self.response.write(data)
        finally:
            if self._heart is not None:
                self._heart.cancel()

    def _beat(self) -> None:
        """Say that the engine is alive, where nothing else is said."""
        if not self._said:
            self._put(b"K", b"")
        self._said = False
        self._heart = asyncio.get_running_loop().call_later(ALIVE_SECONDS, self._beat)

    def _put(self, kind: bytes, payload: bytes) -> None:
        self._said = True
        self._waiting += _FRAME.pack(kind, len(payload)) + payload
        self._filled.set()


def split_frames(data: bytes) -> Iterator[bytes]:
    """The frames of a record, each its kind and payload. Raises InvalidRequest."""
    at, view = 0, memoryview(data)
    while at < len(data):
        if len(data) - at < _FRAME.size:
            raise InvalidRequest("the record ends within a frame")
        kind, length = _FRAME.unpack_from(view, at)
        at += _FRAME.size
        if kind not in RECORD or length > len(data) - at:
            raise InvalidRequest("the record has a frame of another kind or length")
        yield kind + bytes(view[at : at + length])
        at += length
