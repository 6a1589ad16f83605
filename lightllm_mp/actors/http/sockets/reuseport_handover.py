"""Leaving a port that another server shares (SO_REUSEPORT) without refusing one connection.

The kernel spreads new connections over the sockets that listen on a port, and resets those that nobody has accepted
when their socket is closed. So they are steered to another socket first: a filter that the sockets of a port have in
common returns the number of the one to take (SO_ATTACH_REUSEPORT_CBPF, Linux 4.6 for TCP; numbers count the sockets as
they began to listen). Which number is not ours, a connection of our own tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
from collections.abc import Callable

SO_ATTACH_REUSEPORT_CBPF, SO_DETACH_REUSEPORT_BPF = 51, 68
BPF_RET_K = 0x06
PATIENCE = 1.0
"""Time for connections that the kernel had begun to give us, and for clients to ask on those they have, in seconds."""
PROBE = 0.25
"""How long a connection to this machine may take, in seconds."""

Take = Callable[[socket.socket], None]


def share_evenly(listening: socket.socket) -> None:
    """Undo what a server that has left has told the kernel; for a socket that listens."""
    with contextlib.suppress(OSError):  # nothing was told, or an older kernel
        listening.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)


async def leave(listening: socket.socket, take: Take) -> None:
    """Give new connections to somebody else and hand those that still come to `take`; then stop listening. Takes
    `listening` over, of which nobody else accepts any more, and closes it."""
    guests = _Guests(listening, take)
    try:
        await guests.steer_away()
        await asyncio.sleep(PATIENCE)
    finally:
        await guests.close()


class _Guests:
    """Accepts what still comes."""

    def __init__(self, listening: socket.socket, take: Take) -> None:
        self._listening, self._take = listening, take
        listening.setblocking(False)
        self._probe: tuple[str, int] | None = None
        self._came = asyncio.Event()
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._listening.shutdown(socket.SHUT_RDWR)  # other processes have it open, too
        self._listening.close()

    async def steer_away(self) -> None:
        """Tell the kernel another socket's number; where we are alone, or it cannot be told, all goes on as before."""
        for number in (1, 0):  # we were the first, if the other one is to replace us
            try:
                _steer(self._listening, number)
            except OSError:
                return
            if not await self._comes_to_us():
                return

    async def _comes_to_us(self) -> bool:
        loop = asyncio.get_running_loop()
        host, port = self._listening.getsockname()[:2]
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self._came.clear()
        with socket.socket(self._listening.family, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.bind((here, 0))
            self._probe = probe.getsockname()[:2]
            try:
                async with asyncio.timeout(PROBE):
                    await loop.sock_connect(probe, (here, port))
                    await self._came.wait()
            except (TimeoutError, OSError):
                return False
            finally:
                self._probe = None
        return True

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, peer = await loop.sock_accept(self._listening)
            if peer[:2] == self._probe:
                connection.close()
                self._came.set()
            else:
                self._take(connection)


def _steer(listening: socket.socket, number: int) -> None:
    """New connections of this port go to socket `number`; if there is none, wherever they like."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RET_K, 0, 0, number))
    described = struct.pack("HxxxxxxP", 1, ctypes.addressof(program))
    listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, described)
