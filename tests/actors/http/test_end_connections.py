"""A server that ends closes idle connections without a reset of a request that is on its way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from lightllm_mp.actors.http.sockets import connection
from lightllm_mp.actors.http.sockets.connection import Connection
from lightllm_mp.actors.http.sockets.listener import HttpServer, serve
from lightllm_mp.config import HttpConfig

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
DEADLINE = 20.0


@asynccontextmanager
async def served(monkeypatch: pytest.MonkeyPatch, quiet: float) -> AsyncIterator[tuple[HttpServer, list[Connection]]]:
    """A server that answers `hi`, and its connections in order."""
    monkeypatch.setattr(connection, "QUIET", quiet)
    came: list[Connection] = []
    app = web.Application()

    async def answer(request: web.Request) -> web.Response:
        protocol: Any = request.protocol
        protocol.headers_complete()
        came.append(protocol)
        return web.Response(text="hi")

    app.router.add_get("/", answer)
    server = await serve(app, socket.create_server(("127.0.0.1", 0)), HttpConfig())
    try:
        async with asyncio.timeout(DEADLINE):
            yield server, came
    finally:
        await server.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert await reader.readexactly(2) == b"hi"


def test_a_request_in_the_quiet_time_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with served(monkeypatch, 0.4) as (server, _):
            used = await asyncio.open_connection(*server.address)
            await ask(*used)
            unused = await asyncio.open_connection(*server.address)
            await asyncio.sleep(0.1)  # it is accepted
            ending = asyncio.create_task(server.end_connections())
            for pair in (used, unused, used):
                await asyncio.sleep(0.1)
                await ask(*pair)
            assert not ending.done()
            await ending
            assert await used[0].read() == await unused[0].read() == b""

    asyncio.run(main())


def test_bytes_that_wait_in_the_kernel_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with served(monkeypatch, 0.05) as (server, came):
            reader, writer = await asyncio.open_connection(*server.address)
            await ask(reader, writer)
            transport: Any = came[0].transport
            transport.pause_reading()
            asking = asyncio.create_task(ask(reader, writer))
            ending = asyncio.create_task(server.end_connections())
            await asyncio.sleep(0.3)  # the quiet time is over, and over again
            transport.resume_reading()
            await asking
            await ending
            assert await reader.read() == b""

    asyncio.run(main())
