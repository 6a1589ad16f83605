"""The listening port: accepts connections for an application, and closes them when told."""

from __future__ import annotations

import asyncio
import socket
import ssl

from aiohttp import web

from lightllm_mp.actors.http.connection import Connection
from lightllm_mp.config import HttpConfig

BACKLOG = 1024
KEEP_ALIVE = 75.0
"""An idle connection is kept for this long, in seconds; longer than the usual proxy keeps it."""
LINGER = 2.0
"""How long the rest of an unread body is still taken before a connection is closed, in seconds."""


class Port:
    """A running HTTP server; made by `serve`."""

    def __init__(self, runner: web.AppRunner, server: asyncio.Server) -> None:
        self._runner, self._server = runner, server

    @property
    def address(self) -> tuple[str, int]:
        """Host and port it really listens on."""
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def close(self) -> None:
        """Stop listening, let running handlers finish for `shutdown` seconds, then cut them off."""
        self._server.close()
        await self._runner.cleanup()


async def serve(
    app: web.Application,
    sock: socket.socket,
    config: HttpConfig,
    *,
    tls: ssl.SSLContext | None = None,
    shutdown: float = 1.0,
) -> Port:
    """Serve `app` on `sock`, bound already, with `tls` as HTTPS. The Port is to be closed; it closes the socket."""
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

    server = await loop.create_server(
        connection,
        sock=sock,
        backlog=BACKLOG,
        ssl=tls,
        ssl_handshake_timeout=config.header_timeout if tls else None,  # not to shake hands is not to send headers
        ssl_shutdown_timeout=LINGER if tls else None,
    )
    return Port(runner, server)
