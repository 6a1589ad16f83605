"""Leaving a port that somebody else shares, under clients that connect all the time."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from lightllm_mp.actors.http import takeover

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
        takeover.share_evenly(self.sock)
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
        await takeover.leave(mine, self.take)


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
    monkeypatch.setattr(takeover, "PATIENCE", 0.2)

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


def test_leaving_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes meanwhile is served, then the port is closed."""
    monkeypatch.setattr(takeover, "PATIENCE", 0.2)

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
