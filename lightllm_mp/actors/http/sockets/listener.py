"""The HTTP server on the listening socket: accepts connections for an application, leaves a shared port, shuts down."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

from aiohttp import web

from lightllm_mp.actors.http.sockets import reuseport_handover
from lightllm_mp.actors.http.sockets.address_limit import CONNECTIONS, LimitedListener, connection_counts
from lightllm_mp.actors.http.sockets.bind import BACKLOG
from lightllm_mp.actors.http.sockets.connection import Connection
from lightllm_mp.config import HttpConfig

log = logging.getLogger("lightllm_mp.http")

Handler = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]

ACCEPTS = 32
"""Connections accepted per turn of the event loop."""
KEEP_ALIVE = 75.0
"""Seconds for which an idle connection is kept; longer than usual proxies keep it."""
TURN = 0.05
"""Seconds between two looks at connections that end."""
LINGER = 2.0
"""Seconds for which the rest of an unread body is still received before the connection is closed."""


class HttpServer:
    """A running HTTP server, created by `serve`."""

    def __init__(self, runner: web.AppRunner, server: asyncio.Server, connect: reuseport_handover.Take) -> None:
        self._runner, self._server, self._connect = runner, server, connect

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that it listens on."""
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def leave(self) -> None:
        """Leave new connections to another server on the same port and stop listening. Then `end_connections`."""
        listening = self._server.sockets[0]
        mine = socket.socket(fileno=os.dup(listening.fileno()))
        self._server.close()
        await reuseport_handover.leave(mine, self._connect)
        await self.end_connections()

    async def end_connections(self) -> None:
        """Let each connection close when it is quiet; returns when none is idle any more."""
        manager = self._runner.server
        assert manager is not None
        connections = [connection for connection in manager.connections if isinstance(connection, Connection)]
        for connection in connections:
            connection.close_when_quiet()
        while any(connection.idle for connection in connections):
            await asyncio.sleep(TURN)

    async def close(self) -> None:
        """Stop listening, let running handlers finish for `shutdown` seconds, then cancel them."""
        self._server.close()
        await self._runner.cleanup()


async def serve(
    app: web.Application,
    sock: socket.socket,
    config: HttpConfig,
    *,
    tls: ssl.SSLContext | None = None,
    shutdown: float = 1.0,
) -> HttpServer:
    """Serve `app` on the bound `sock`, with `tls` as HTTPS. Close the returned HttpServer; it closes the socket."""
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=shutdown)
    await runner.setup()
    loop = asyncio.get_running_loop()
    manager = runner.server
    assert manager is not None

    def connection() -> Connection:
        return Connection(
            manager,
            header_timeout=config.header_timeout,
            write_timeout=config.write_timeout,
            loop=loop,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE,
            lingering_time=LINGER,
            auto_decompress=False,
        )

    secure: dict[str, Any] = {}
    if tls is not None:  # the TLS handshake has the time limit of headers
        secure = {"ssl": tls, "ssl_handshake_timeout": config.header_timeout, "ssl_shutdown_timeout": LINGER}
    connecting = set[asyncio.Task[Any]]()

    def connect(accepted: socket.socket) -> None:
        task = loop.create_task(loop.connect_accepted_socket(connection, accepted, **secure))
        connecting.add(task)
        task.add_done_callback(connecting.discard)

    counts = app.get(CONNECTIONS) or connection_counts(config)
    sock = LimitedListener(sock, counts, secure=tls is not None)
    server = await loop.create_server(connection, sock=sock, backlog=ACCEPTS, **secure)
    # asyncio also uses the backlog as accepts per turn, and logs each failure if descriptors run out: set it apart.
    sock.listen(BACKLOG)
    loop.set_exception_handler(_complaining(loop.get_exception_handler()))
    if config.reuse_port:
        reuseport_handover.share_evenly(sock)
    return HttpServer(runner, server, connect)


def _complaining(earlier: Handler | None) -> Handler:
    """Logs one line when no connection can be accepted; passes everything else to the `earlier` handler."""

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "socket" in context and isinstance(error := context.get("exception"), OSError):
            log.warning("connections wait, none can be accepted: %s", error.strerror)
        elif earlier is not None:
            earlier(loop, context)
        else:
            loop.default_exception_handler(context)

    return handle
