"""The front of a fleet as an ASGI application: all routes of the engine, with its keys."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from lightllm_mp.actors.http.security.keys import ApiKeys, digest, is_known
from lightllm_mp.replicas.frames import Head
from lightllm_mp.replicas.front import FleetFront

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN = ("/health", "/healthz", "/liveness", "/readiness")
"""Answered without a key, here: as long as one replica accepts requests, the fleet does."""
HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})
_BEARER = re.compile(r"bearer +(\S+)\s*", re.IGNORECASE | re.ASCII)


class FrontApp:
    """`max_body_bytes`: longer bodies get 413."""

    def __init__(self, front: FleetFront, keys: ApiKeys, *, max_body_bytes: int) -> None:
        self._front, self._keys, self._most = front, keys, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        if path in OPEN:
            ready = self._front.ready
            await _simple(send, 200 if ready else 503, {"message": "Ok"} if ready else {"message": "Error"})
            return
        given, needed = _key(headers), bool(self._keys)
        if needed and not is_known(given, self._keys.users | self._keys.admins):
            await _error(send, 401, "a valid API key is needed", "invalid_api_key", {"WWW-Authenticate": "Bearer"})
            return
        if needed and path.startswith("/live") and not is_known(given, self._keys.admins):
            await _error(send, 403, "this needs an admin key", "forbidden", {})
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > self._most:
                await _error(send, 413, f"the body is larger than {self._most} bytes", "payload_too_large", {})
                return
            if not message.get("more_body"):
                break
        query = scope["query_string"].decode("latin-1")
        target = scope.get("raw_path", path.encode()).decode("latin-1").split("?")[0] + (f"?{query}" if query else "")
        answering = asyncio.ensure_future(
            self._answer(scope["method"], target, headers, bytes(body), given if needed else b"", send)
        )
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            answering.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(
        self, method: str, target: str, headers: dict[str, str], body: bytes, tenant: bytes, send: Send
    ) -> None:
        answer = self._front.answer(method, target, headers, body, tenant)
        try:
            async for piece in answer:
                if isinstance(piece, Head):
                    shown = [(k.encode(), v.encode()) for k, v in piece.headers.items() if k.lower() not in HOP]
                    await send({"type": "http.response.start", "status": piece.status, "headers": shown})
                else:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()


def _key(headers: dict[str, str]) -> bytes:
    found = _BEARER.fullmatch(headers.get("authorization", ""))
    return digest(found[1] if found else headers.get("x-api-key", "").strip())


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _simple(send: Send, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
    shown = {"Content-Type": "application/json"} | (headers or {})
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in shown.items()],
        }
    )
    await send({"type": "http.response.body", "body": msgspec.json.encode(value)})


async def _error(send: Send, status: int, message: str, code: str, headers: dict[str, str]) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    await _simple(send, status, {"error": error}, headers)


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": message["type"] + ".complete"})
    await send({"type": "lifespan.shutdown.complete"})
