"""Transports that queues.py compares: a client sends bytes to a server in another process, which answers if asked.

A transport is made before the fork. The process that uses a side calls `client` or `server` (or `serve`).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import struct
import tempfile
from collections.abc import Callable
from typing import Any

from lightllm_mp.shm import Bell, Inbox, Lane, Sender
from lightllm_mp.shm.implementation import VARIABLE

try:
    import zmq
    import zmq.asyncio
except ImportError:
    zmq = None

Send = Callable[[bytes], Any]
"""Blocks until the bytes are taken."""
Receive = Callable[[], list[bytes]]
"""Blocks until bytes have come."""
Take = Callable[[list[bytes], Send], bool]
"""A server's work on payloads, given a function to answer; true: it is done."""
FORK = multiprocessing.get_context("fork")
LENGTH = struct.Struct("<I")


class Transport:
    """Carries payloads between two processes. Its server side is a blocking loop (`server`), an asyncio task
    (`serve_async`), or both; the side that a transport lacks raises NotImplementedError."""

    def client(self) -> tuple[Send, Receive]:
        raise NotImplementedError

    def server(self) -> tuple[Receive, Send]:
        raise NotImplementedError

    async def serve_async(self, take: Take) -> None:
        raise NotImplementedError

    def serve(self, take: Take) -> None:
        receive, send = self.server()
        while not take(receive(), send):
            pass

    def close(self) -> None:
        """Closes both ends."""


class Ring(Transport):
    """The lane of this package, and a second lane for the way back."""

    spin_us = 0
    implementation = "c"

    def __init__(self, capacity: int = 1 << 20, most: int = 256) -> None:
        self.most = most  # records per drain: few large ones, so that the allocator reuses warm pages
        os.environ[VARIABLE] = self.implementation
        self.bells = Bell.create(1), Bell.create(2)
        self.lanes = Lane.create(capacity, 1, 2), Lane.create(capacity, 2, 1)

    def _end(self, end: int) -> tuple[Inbox, Sender]:
        os.environ[VARIABLE] = self.implementation
        inbox = Inbox(self.bells[end])
        inbox.add(self.lanes[1 - end], self.bells[1 - end])
        return inbox, Sender(self.lanes[end], self.bells[end], self.bells[1 - end])

    def _receive(self, inbox: Inbox) -> Receive:
        drain, wait, spin_us, most = inbox.drain, inbox.wait, self.spin_us, self.most

        def receive() -> list[bytes]:
            wait(None, spin_us)
            return [record[2] for record in drain(most)]

        return receive

    def client(self) -> tuple[Send, Receive]:
        inbox, self._sender = self._end(0)
        put, wait = self._sender.try_put, Inbox(self.bells[0]).wait

        def send(data: bytes) -> None:
            while not put(data):
                wait()

        return send, self._receive(inbox)

    def server(self) -> tuple[Receive, Send]:
        inbox, self._sender = self._end(1)
        return self._receive(inbox), self._sender.try_put

    async def serve_async(self, take: Take) -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        inbox, sender = self._end(1)
        put = sender.try_put
        inbox.attach(loop, lambda records: done.set() if take([r[2] for r in records], put) else None)
        await done.wait()
        inbox.detach(loop)

    def close(self) -> None:
        for part in (*self.lanes, *self.bells):
            part.close()


class Twin(Ring):
    implementation = "python"


class SpinningRing(Ring):
    spin_us = 50


class Pipe(Transport):
    def __init__(self) -> None:
        self._ends = FORK.Pipe()

    def client(self) -> tuple[Send, Receive]:
        end = self._ends[0]
        return end.send_bytes, lambda: [end.recv_bytes()]

    def server(self) -> tuple[Receive, Send]:
        end = self._ends[1]
        return lambda: [end.recv_bytes()], end.send_bytes

    def close(self) -> None:
        for end in self._ends:
            end.close()


class Queue(Transport):
    def __init__(self) -> None:
        self._there, self._back = FORK.Queue(), FORK.Queue()

    def client(self) -> tuple[Send, Receive]:
        return self._there.put, lambda: [self._back.get()]

    def server(self) -> tuple[Receive, Send]:
        return lambda: [self._there.get()], self._back.put

    def close(self) -> None:
        for queue in (self._there, self._back):
            queue.close()
            queue.join_thread()


class Zmq(Transport):
    """PUSH/PULL over ipc, one socket each way."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._paths = [f"ipc://{self._directory.name}/{name}" for name in ("there", "back")]
        self._context: Any = None

    def _sockets(self, context: Any, connect: bool) -> tuple[Any, Any]:
        """(push, pull); the client binds, the server connects."""
        self._context = context
        push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        paths = self._paths[::-1] if connect else self._paths
        for end, path in zip((push, pull), paths, strict=True):
            (end.connect if connect else end.bind)(path)
        return push, pull

    def client(self) -> tuple[Send, Receive]:
        push, pull = self._sockets(zmq.Context(), False)
        return push.send, lambda: [pull.recv()]

    def server(self) -> tuple[Receive, Send]:
        push, pull = self._sockets(zmq.Context(), True)
        return lambda: [pull.recv()], push.send

    async def serve_async(self, take: Take) -> None:
        push, pull = self._sockets(zmq.asyncio.Context(), True)
        answers: list[bytes] = []
        while not take([await pull.recv()], answers.append):
            while answers:
                await push.send(answers.pop())

    def close(self) -> None:
        if self._context is not None:
            self._context.destroy()
        self._directory.cleanup()


class Streams(Transport):
    """Length-prefixed frames over a unix socket; asyncio streams in the server, a plain socket in the client."""

    def __init__(self) -> None:
        self._client, self._server = socket.socketpair()

    def client(self) -> tuple[Send, Receive]:
        sock, file = self._client, self._client.makefile("rb", 65536)

        def receive() -> list[bytes]:
            return [file.read(*LENGTH.unpack(file.read(4)))]

        return lambda data: sock.sendall(LENGTH.pack(len(data)) + data), receive

    async def serve_async(self, take: Take) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=self._server)

        async def payload() -> bytes:
            return await reader.readexactly(*LENGTH.unpack(await reader.readexactly(4)))

        while not take([await payload()], lambda data: writer.write(LENGTH.pack(len(data)) + data)):
            pass

    def close(self) -> None:
        self._client.close()
        self._server.close()


class EventFd(Transport):
    """No payload: the cost of a wake-up."""

    def __init__(self) -> None:
        self._fds = os.eventfd(0), os.eventfd(0)

    def client(self) -> tuple[Send, Receive]:
        return self._send(1), self._receive(0)

    def server(self) -> tuple[Receive, Send]:
        return self._receive(1), self._send(0)

    def _send(self, end: int) -> Send:
        fd = self._fds[end]
        return lambda data: os.eventfd_write(fd, 1 if data else 2)

    def _receive(self, end: int) -> Receive:
        fd = self._fds[end]
        return lambda: [b"" if os.eventfd_read(fd) > 1 else b"x"]

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
