"""A client of one engine's port. It reconnects when the process behind the port is replaced.

An engine's supervisor keeps the port open while it replaces the process behind it, so the client makes a broken
connection again. A refused connection means that the whole engine is gone. A silent connection, or one that cannot be
made in time, means that the network path is gone. In both cases the client raises ReplicaLost at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from time import monotonic

import aiohttp
from yarl import URL

from lightllm_mp.actors.http.relayed_answer import (
    ACCESS_HEADER,
    ALIVE_SECONDS,
    CONTENT_TYPE,
    KEY_HEADER,
    TENANT_HEADER,
)
from lightllm_mp.replicas import frames
from lightllm_mp.replicas.call import RelayCall, ReplicaLost
from lightllm_mp.replicas.frames import FrameReader

LABEL = "X-Request-Id"
PAUSE = 0.1
"""Seconds between two attempts to reconnect."""
CONNECT = 5.0
"""Seconds that an engine has to accept a connection."""
SILENCE = 5 * ALIVE_SECONDS
"""Seconds without a frame after which an engine counts as lost."""
LOOK = aiohttp.ClientTimeout(total=2.0)


class EngineClient:
    """`key`: the relay key. `patience`: seconds that a repair of the engine may take. `on_lost`: called when the engine
    is lost."""

    def __init__(
        self, base_url: str, key: str, *, patience: float = 10.0, on_lost: Callable[[], None] = lambda: None
    ) -> None:
        self._on_lost = on_lost
        self._base, self._key, self._patience, self._closed = base_url, key, patience, False
        self._replies = set[aiohttp.ClientResponse]()
        self.reachable = True
        """False from the loss of the engine until it answers again: see `look`."""
        self._looking: asyncio.Task[None] | None = None
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
        self._session = aiohttp.ClientSession(
            timeout=timeout, auto_decompress=False, connector=aiohttp.TCPConnector(limit=0), read_bufsize=1 << 20
        )

    async def close(self) -> None:
        """The engine is gone: all its calls raise ReplicaLost at once."""
        self._closed = True
        for reply in self._replies:  # closing the session does not wake its readers
            reply.content.set_exception(ConnectionResetError("it has left"))
        if self._looking is not None:
            self._looking.cancel()
        await self._session.close()

    def look(self) -> None:
        """Check in the background whether a lost engine answers again."""
        if not self.reachable and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
            async with self._session.get(self._base + "/liveness", timeout=LOOK):
                self.reachable = True

    async def call(self, call: RelayCall) -> AsyncGenerator[list[bytes], None]:
        """The frames of the answer. Raises ReplicaLost if the engine cannot continue it."""
        begun, until = _Progress(call), monotonic() + self._patience
        while not self._closed:
            try:
                async for piece in self._frames(begun.next_call()):
                    found = list(begun.reader.feed(piece))
                    for frame in found:
                        if begun.take(frame):
                            until = monotonic() + self._patience
                    if found:
                        yield found
                if begun.complete:
                    return
            except aiohttp.ConnectionTimeoutError:
                raise self._lost("its engine cannot be reached", begun) from None
            except TimeoutError:
                begun.reached = True
                raise self._lost("its engine is silent", begun) from None
            except aiohttp.ClientConnectorError as error:
                if isinstance(error.os_error, ConnectionRefusedError):
                    raise self._lost("its engine is gone", begun) from None
            except (aiohttp.ClientError, ConnectionError):
                begun.reached = True
            if monotonic() > until:
                raise self._lost("its engine does not answer", begun)
            begun.broken()
            await asyncio.sleep(0 if self._closed else PAUSE)
        raise ReplicaLost("it has left", reached=begun.reached)

    def _lost(self, why: str, begun: _Progress) -> ReplicaLost:
        self.reachable = False
        self._on_lost()
        return ReplicaLost(why, reached=begun.reached)

    async def _frames(self, call: RelayCall) -> AsyncIterator[bytes]:
        """The bytes of one connection, in pieces."""
        headers = {**call.headers, KEY_HEADER: self._key, TENANT_HEADER: call.tenant, ACCESS_HEADER: call.access}
        if call.taken:
            headers["Last-Event-ID"] = str(call.taken)
        url = URL(self._base + call.path, encoded=True)  # escaped as the client wrote it
        async with self._session.request(call.method, url, data=call.body, headers=headers) as reply:
            if reply.status != 200 or reply.content_type != CONTENT_TYPE:
                raise ReplicaLost(f"its engine answers {reply.status} without frames")
            self._replies.add(reply)
            self.reachable = True
            try:
                async for piece in reply.content.iter_any():
                    yield piece
            finally:
                self._replies.discard(reply)


class _Progress:
    """The progress of an answer over all its connections."""

    def __init__(self, call: RelayCall) -> None:
        self._call, self._events, self._recorded, self._again = call, call.taken, False, False
        self.reader, self.complete, self.reached = FrameReader(), False, False

    def next_call(self) -> RelayCall:
        if not (self._again and self._recorded):
            return self._call
        label = self._call.headers[LABEL]
        return RelayCall(
            method="GET",
            path=f"/requests/{label}",
            headers=self._call.headers,
            tenant=self._call.tenant,
            taken=self._events,
        )

    def broken(self) -> None:
        """The connection is broken."""
        self.reader, self._again = FrameReader(), True

    def take(self, frame: bytes) -> bool:
        """Whether the frame shows that the engine makes progress. Frames of the record do not: each connection repeats
        them. Raises ReplicaLost, or ConnectionError if the engine is still starting."""
        self.reached = True
        match frame[:1]:
            case frames.HEAD if self._again:
                status = frames.head(frame).status
                if status == 503:
                    raise ConnectionError("its engine starts")
                if status != 200 and self._recorded:
                    raise ReplicaLost("its engine has lost the request")
            case frames.BODY:
                self._events = frames.body(frame)[0]
                return True
            case frames.ALIVE:
                return True
            case frames.REQUEST:
                self._recorded = True
            case frames.END:
                self.complete = True
        return False
