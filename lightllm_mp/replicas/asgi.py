"""The front of a fleet as an ASGI application. It serves all routes of the engine and checks the same API keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any

from lightllm_mp.actors.http.access_log import checked_label
from lightllm_mp.actors.http.error_responses import error_response
from lightllm_mp.errors import EngineError, PayloadTooLarge
from lightllm_mp.replicas.frames import Head
from lightllm_mp.replicas.front import Answer
from lightllm_mp.replicas.front_door import FrontDoor
from lightllm_mp.replicas.port import HOP

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class FrontApp:
    """Serves the front to an ASGI server. `max_body_bytes`: longer bodies get 413."""

    def __init__(self, door: FrontDoor, *, max_body_bytes: int) -> None:
        self._door, self._most = door, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            headers["x-request-id"] = checked_label(headers.get("x-request-id", ""))
            answer = _Answer(send, headers["x-request-id"], look=scope["method"] == "HEAD")
            try:
                await self._http(scope, headers, receive, answer)
            except EngineError as error:
                response = error_response(error)
                await answer.whole(Head(response.status, dict(response.headers)), bytes(response.body))  # type: ignore[arg-type]

    async def _http(self, scope: Scope, headers: dict[str, str], receive: Receive, answer: _Answer) -> None:
        door, method = self._door, scope["method"]
        tenant, access = door.admitted(method, headers)
        if (own := await door.own(method, scope["path"], access, tenant)) is not None:
            await answer.whole(*own)
            return
        async with door.passing():
            if (body := await self._body(receive)) is None:
                return
            query = scope["query_string"].decode("latin-1")
            target = scope.get("raw_path", scope["path"].encode()).decode("latin-1").split("?")[0]
            target += f"?{query}" if query else ""
            asked = "GET" if method == "HEAD" else method
            answering = asyncio.ensure_future(
                answer.relay(door.front.answer(asked, target, headers, body, tenant, access))
            )
            leaving = asyncio.ensure_future(_left(receive))
            try:
                await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                leaving.cancel()
                answering.cancel()
                await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None if the client disconnects before its end. Raises PayloadTooLarge."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._most:
                raise PayloadTooLarge(f"the body is larger than {self._most} bytes")
            if not message.get("more_body"):
                return bytes(body)


class _Answer:
    """Sends an answer to the client. `look`: the request is HEAD, so the body is left out."""

    def __init__(self, send: Send, label: str, *, look: bool) -> None:
        self._send, self._label, self._look = send, label, look

    async def whole(self, head: Head, body: bytes) -> None:
        await self._begin(head)
        await self._send({"type": "http.response.body", "body": b"" if self._look else body})

    async def relay(self, pieces: Answer) -> None:
        async with aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, Head):
                    await self._begin(piece)
                elif not self._look:
                    await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            await self._send({"type": "http.response.body", "body": b""})

    async def _begin(self, head: Head) -> None:
        shown = {name: value for name, value in head.headers.items() if name.lower() not in HOP}
        shown |= {"X-Request-Id": self._label, "Server": "lightllm-mp"}
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in shown.items()]
        await self._send({"type": "http.response.start", "status": head.status, "headers": headers})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": message["type"] + ".complete"})
    await send({"type": "lifespan.shutdown.complete"})
