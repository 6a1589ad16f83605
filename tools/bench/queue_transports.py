"""What queues.py compares: each transport carries bytes from one process to another, and answers where asked.

A transport is made before the fork. `sender()` and `receiver()` are called in the process that uses them and give a
function: send(bytes) blocks until the bytes are taken, receive() blocks and returns a list of payloads.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing as mp
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
Receive = Callable[[], list[bytes]]
Done = Callable[[list[bytes], Callable[[bytes], Any]], bool]
_LENGTH = struct.Struct("<I")


class Transport:
    """A client and a server, each with its two functions; one way, the client sends and the server receives."""

    def client(self) -> tuple[Send, Receive]:
        raise NotImplementedError

    def server(self) -> tuple[Receive, Send]:
        raise NotImplementedError

    async def serve_async(self, loop: asyncio.AbstractEventLoop, take: Done) -> None:
        """Until `take`, which is given payloads and a function that answers, returns true."""
        raise NotImplementedError

    def sender(self) -> Send:
        return self.client()[0]

    def receiver(self) -> Receive:
        return self.server()[0]

    def close(self) -> None:
        """Both ends."""


class Ring(Transport):
    """The lane of this package, one way; `back` is a second lane for answers."""

    spin_us = 0
    implementation = "c"

    def __init__(self, capacity: int = 1 << 20, most: int = 256) -> None:
        self.most = most  # records per drain: few large ones, so that the allocator reuses warm pages
        os.environ[VARIABLE] = self.implementation
        self.bells = Bell.create(1), Bell.create(2)
        self.lanes = Lane.create(capacity, 1, 2), Lane.create(capacity, 2, 1)

    def sender(self, end: int = 0) -> Send:
        os.environ[VARIABLE] = self.implementation
        self._sender = Sender(self.lanes[end], self.bells[end], self.bells[1 - end])
        put, inbox = self._sender.try_put, Inbox(self.bells[end]) if end == 0 else None

        def send(data: bytes) -> None:
            while not put(data):
                assert inbox is not None
                inbox.wait()

        return send

    def inbox(self, end: int) -> Inbox:
        os.environ[VARIABLE] = self.implementation
        inbox = Inbox(self.bells[end])
        inbox.add(self.lanes[1 - end], self.bells[1 - end])
        return inbox

    def receiver(self, end: int = 1) -> Receive:
        inbox, spin_us, most = self.inbox(end), self.spin_us, self.most
        drain, wait = inbox.drain, inbox.wait

        def receive() -> list[bytes]:
            wait(None, spin_us)
            return [record[2] for record in drain(most)]

        return receive

    def client(self) -> tuple[Send, Receive]:
        return self.sender(0), self.receiver(0)

    def server(self) -> tuple[Receive, Send]:
        return self.receiver(1), self.sender(1)

    async def serve_async(self, loop: asyncio.AbstractEventLoop, take: Done) -> None:
        inbox, put, done = self.inbox(1), self.sender(1), asyncio.Event()
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
        self._ends = mp.Pipe()

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
        self._there, self._back = mp.get_context("fork").Queue(), mp.get_context("fork").Queue()

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

    def client(self) -> tuple[Send, Receive]:
        self._context = zmq.Context()
        push, pull = self._context.socket(zmq.PUSH), self._context.socket(zmq.PULL)
        push.bind(self._paths[0])
        pull.bind(self._paths[1])
        return push.send, lambda: [pull.recv()]

    def server(self) -> tuple[Receive, Send]:
        self._context = zmq.Context()
        push, pull = self._context.socket(zmq.PUSH), self._context.socket(zmq.PULL)
        pull.connect(self._paths[0])
        push.connect(self._paths[1])
        return lambda: [pull.recv()], push.send

    async def serve_async(self, loop: asyncio.AbstractEventLoop, take: Done) -> None:
        context = zmq.asyncio.Context()
        push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        pull.connect(self._paths[0])
        push.connect(self._paths[1])
        answers: list[bytes] = []
        while not take([await pull.recv()], answers.append):
            while answers:
                await push.send(answers.pop())

    def close(self) -> None:
        if hasattr(self, "_context"):
            self._context.destroy()
        self._directory.cleanup()


class Streams(Transport):
    """Length-prefixed frames over a unix socket; asyncio streams in the server, a plain socket in the client."""

    def __init__(self) -> None:
        self._client, self._server = socket.socketpair()

    def client(self) -> tuple[Send, Receive]:
        sock, file = self._client, self._client.makefile("rb", 65536)

        def receive() -> list[bytes]:
            (length,) = _LENGTH.unpack(file.read(4))
            return [file.read(length)]

        return lambda data: sock.sendall(_LENGTH.pack(len(data)) + data), receive

    async def serve_async(self, loop: asyncio.AbstractEventLoop, take: Done) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=self._server)

        def answer(data: bytes) -> None:
            writer.write(_LENGTH.pack(len(data)) + data)

        while True:
            (length,) = _LENGTH.unpack(await reader.readexactly(4))
            if take([await reader.readexactly(length)], answer):
                return

    def close(self) -> None:
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.close()


class EventFd(Transport):
    """No payload at all: what a wake-up costs."""

    def __init__(self) -> None:
        self._fds = os.eventfd(0), os.eventfd(0)

    def client(self) -> tuple[Send, Receive]:
        return self._pair(0)

    def server(self) -> tuple[Receive, Send]:
        send, receive = self._pair(1)
        return receive, send

    def _pair(self, end: int) -> tuple[Send, Receive]:
        def receive() -> list[bytes]:
            return [b"" if os.eventfd_read(self._fds[end]) > 1 else b"x"]

        return lambda data: os.eventfd_write(self._fds[1 - end], 1 if data else 2), receive

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
