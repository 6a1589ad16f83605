"""Where the bytes of a streamed answer go: to the client, or in frames to a front of several engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from aiohttp import web

from lightllm_mp.actors.http.context import RELAYED
from lightllm_mp.actors.http.relayed_answer import RelayedAnswer


class AnswerStream(Protocol):
    response: web.StreamResponse

    async def write(self, piece: bytes) -> None: ...

    async def shown(self, events: int) -> None:
        """With what is written, the client has so many events."""

    async def end(self, last: bytes = b"") -> None:
        """Write the last bytes."""


async def begin(request: web.Request, content_type: str, headers: Mapping[str, str]) -> AnswerStream:
    """Begin the answer of `request`, with status 200."""
    if (relayed := request.get(RELAYED)) is not None:
        relayed.head(200, {"Content-Type": content_type, **headers})
        return _Relayed(relayed)
    response = web.StreamResponse(headers=headers)
    response.content_type = content_type
    await response.prepare(request)
    return _Direct(response)


class _Direct:
    def __init__(self, response: web.StreamResponse) -> None:
        self.response = response
        self.write = response.write

    async def shown(self, events: int) -> None: ...

    async def end(self, last: bytes = b"") -> None:
        await self.response.write_eof(last)


class _Relayed:
    """All bytes of a row of events are one frame, so that a client never has a part of an event."""

    def __init__(self, answer: RelayedAnswer) -> None:
        self.response = answer.response
        self._answer, self._events, self._bytes = answer, 0, bytearray()

    async def write(self, piece: bytes) -> None:
        self._bytes += piece

    async def shown(self, events: int) -> None:
        self._events = events
        data, self._bytes = bytes(self._bytes), bytearray()
        await self._answer.body(events, data)

    async def end(self, last: bytes = b"") -> None:
        self._bytes += last
        await self.shown(self._events)
