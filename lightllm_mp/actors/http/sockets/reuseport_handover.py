"""Leaves a port that another server shares (SO_REUSEPORT) without refusing a connection.

The kernel spreads new connections over the sockets that listen on a port. When a socket is closed, the kernel resets
its connections that are not accepted yet. So we first steer new connections to another socket: a filter that the port's
sockets share returns the number of the socket to take (SO_ATTACH_REUSEPORT_CBPF, Linux 4.6 for TCP; sockets count in
the order in which they began to listen). A probe connection of our own tells whether a number is ours.
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
"""Seconds to accept connections already on their way to us."""
PROBE = 0.25
"""Most seconds for the probe connection to this machine."""

Take = Callable[[socket.socket], None]


def share_evenly(listening: socket.socket) -> None:
    """Remove the filter that a server that left has set. `listening` must listen already."""
    with contextlib.suppress(OSError):  # no filter is set, or the kernel is older
        listening.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)


async def leave(listening: socket.socket, take: Take) -> None:
    """Steer new connections to the other server, pass those that still come to `take`, then stop listening. Owns and
    closes `listening`; the caller must no longer accept on it."""
    guests = _Guests(listening, take)
    try:
        await guests.steer_away()
        await asyncio.sleep(PATIENCE)
    finally:
        await guests.close()


class _Guests:
    """Accepts the connections that still come."""

    def __init__(self, listening: socket.socket, take: Take) -> None:
        self._listening, self._take = listening, take
        listening.setblocking(False)
        self._probe: tuple[str, int] | None = None
        self._came = asyncio.Event()
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._listening.shutdown(socket.SHUT_RDWR)  # other processes have it open too
        self._listening.close()

    async def steer_away(self) -> None:
        """Set the filter to another socket's number. If there is none, or no filter, connections still come to us."""
        for number in (1, 0):  # the socket that replaces ours listens second
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
    """Steer new connections of this port to socket `number`; without such a socket the kernel spreads them."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RET_K, 0, 0, number))
    described = struct.pack("HxxxxxxP", 1, ctypes.addressof(program))
    listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, described)
