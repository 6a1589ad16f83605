"""Leaving a port that somebody else shares, under clients that connect all the time."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys

import aiohttp
import pytest
from aiohttp import web

from lightllm_mp.actors.http.security.tls import server_context
from lightllm_mp.actors.http.sockets import reuseport_handover
from lightllm_mp.actors.http.sockets.listener import HttpServer, serve
from lightllm_mp.config import HttpConfig
from tests.paths import ROOT

TLS = ROOT / "tests" / "data" / "tls"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SO_REUSEPORT and its filters are Linux")


def shared(port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    return sock


class Greeter:
    """Says its name to everybody who comes, a little late."""

    def __init__(self, name: bytes, sock: socket.socket) -> None:
        self.name, self.sock = name, sock

    async def open(self) -> Greeter:
        self.server = await asyncio.start_server(self.greet, sock=self.sock, backlog=1024)
        reuseport_handover.share_evenly(self.sock)
        return self

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.name)
        writer.close()

    def take(self, connection: socket.socket) -> None:
        connection.sendall(self.name)
        connection.close()

    async def leave(self) -> None:
        mine = self.server.sockets[0].dup()
        self.server.close()
        await reuseport_handover.leave(mine, self.take)


async def names(port: int, until: asyncio.Task[None] | None, count: int = 0) -> list[bytes]:
    """Who answers one connection after the other; a refused or broken one raises."""
    found = []
    while (until is not None and not until.done()) or len(found) < count:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        found.append(await reader.read())
        writer.close()
    return found


@pytest.mark.parametrize("first_leaves", [True, False])
def test_no_connection_is_lost(first_leaves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the younger one of the two leaves, and once more with a third one."""
    monkeypatch.setattr(reuseport_handover, "PATIENCE", 0.2)

    async def main() -> None:
        old = await Greeter(b"old", shared()).open()
        port = old.sock.getsockname()[1]
        new = await Greeter(b"new", shared(port)).open()
        assert set(await names(port, None, 64)) == {b"old", b"new"}
        leaver, stayer = (old, new) if first_leaves else (new, old)
        leaving = asyncio.create_task(leaver.leave())
        crowds = await asyncio.gather(*(names(port, leaving) for _ in range(8)))
        await leaving
        assert all(name in (b"old", b"new") for crowd in crowds for name in crowd)
        assert set(await names(port, None, 32)) == {stayer.name}
        third = await Greeter(b"third", shared(port)).open()
        assert set(await names(port, None, 64)) == {stayer.name, b"third"}  # what was told the kernel is undone
        leaving = asyncio.create_task(stayer.leave())
        await asyncio.gather(*(names(port, leaving) for _ in range(8)))
        assert set(await names(port, None, 32)) == {b"third"}
        third.server.close()

    asyncio.run(main())


@pytest.mark.parametrize("secure", [False, True])
def test_requests_of_new_and_of_kept_connections(secure: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two whole ports: who keeps a connection is told to go, and everybody is answered."""
    monkeypatch.setattr(reuseport_handover, "PATIENCE", 0.3)
    files = {"ssl_certfile": str(TLS / "server.crt"), "ssl_keyfile": str(TLS / "server.key")} if secure else {}
    config = HttpConfig(reuse_port=True, **files)
    trust = ssl.create_default_context(cafile=files.get("ssl_certfile"))
    leaving = asyncio.Event()

    async def opened(name: str, sock: socket.socket) -> HttpServer:
        async def answer(request: web.Request) -> web.Response:
            response = web.Response(text=name)
            if leaving.is_set() and name == "old":
                response.force_close()
            return response

        app = web.Application()
        app.router.add_get("/", answer)
        return await serve(app, sock, config, tls=server_context(config))

    async def ask(url: str, keep: bool, over: asyncio.Event) -> list[str]:
        connector, found = aiohttp.TCPConnector(ssl=trust, force_close=not keep), []
        async with aiohttp.ClientSession(url, connector=connector) as session:
            while not over.is_set():
                async with session.get("/") as reply:
                    found.append(await reply.text())
        return found

    async def main() -> None:
        sock, over = shared(), asyncio.Event()
        number = sock.getsockname()[1]
        old, new = await opened("old", sock), await opened("new", shared(number))
        url = f"http{'s' if secure else ''}://127.0.0.1:{number}"
        asking = [asyncio.create_task(ask(url, keep, over)) for keep in (True, False, True, False)]
        await asyncio.sleep(0.2)
        leaving.set()
        await old.leave()
        await asyncio.sleep(0.1)
        over.set()
        found = [await task for task in asking]
        assert all(names[-1] == "new" for names in found)
        assert any("old" in names for names in found)
        await old.close()
        await new.close()

    asyncio.run(main())


def test_leaving_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes meanwhile is served, then the port is closed."""
    monkeypatch.setattr(reuseport_handover, "PATIENCE", 0.2)

    async def main() -> None:
        only = await Greeter(b"only", shared()).open()
        port = only.sock.getsockname()[1]
        leaving = asyncio.create_task(only.leave())
        await asyncio.sleep(0.05)
        assert await names(port, None, 1) == [b"only"]
        await leaving
        with pytest.raises(ConnectionRefusedError):
            await names(port, None, 1)

    asyncio.run(main())
