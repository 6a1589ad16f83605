"""Limits open connections per client address, so that one client cannot take all descriptors.

A connection counts from its accept on, so silent ones and unfinished TLS handshakes count too.
"""

from __future__ import annotations

import contextlib
import ipaddress
import resource
import socket
import weakref
from collections import Counter
from functools import lru_cache
from typing import Any

from aiohttp import web

from lightllm_mp.actors.http import responses
from lightllm_mp.config import HttpConfig
from lightllm_mp.errors import Overloaded

PER_LIVE_REQUEST, LEAST = 4, 1024
"""Default limit: so many connections per live request, or LEAST. A proxy in front of all clients has one address."""
REFUSALS_PER_TURN = 32
"""Most connections refused in a row before the event loop goes on."""


class TooManyConnections(Overloaded):
    """The client's address has as many open connections as it may."""

    status = 503
    code = "too_many_connections"


class ConnectionCounts:
    """Open connections by address. `limit`: most of one address; 0: no limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open = self.refused = 0
        """Connections now, and refusals since the start."""
        self._by_address: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count a new connection. False if the limit of its address is reached; then it does not count as open."""
        if self.limit and self._by_address[address] >= self.limit:
            self.refused += 1
            return False
        self._by_address[address] += 1
        self.open += 1
        return True

    def leave(self, address: str) -> None:
        self.open -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


CONNECTIONS = web.AppKey("connections", ConnectionCounts)
"""The application's connection counts."""


def connection_counts(config: HttpConfig) -> ConnectionCounts:
    """Counts with the configured limit. Default: see PER_LIVE_REQUEST, at most half of the descriptors."""
    if config.max_connections_per_address is not None:
        return ConnectionCounts(config.max_connections_per_address)
    limit = max(LEAST, PER_LIVE_REQUEST * config.max_live_requests)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return ConnectionCounts(limit if files == resource.RLIM_INFINITY else max(1, min(limit, files // 2)))


@lru_cache(1024)
def client_address(host: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 network of an IPv6 address, which one client owns."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((address, 64), strict=False))
        address = address.ipv4_mapped
    return str(address)


class CountedSocket(socket.socket):
    """An accepted connection that leaves the counts when it is closed or dropped."""

    left: weakref.finalize[..., CountedSocket]

    def close(self) -> None:
        super().close()
        self.left()


class LimitedListener(socket.socket):
    """A listening socket that refuses connections above the limit: with a 503 response, or over TLS by closing. A Unix
    socket has no addresses and so no limit."""

    def __init__(self, listening: socket.socket, counts: ConnectionCounts, *, secure: bool) -> None:
        """Takes over the descriptor of `listening`."""
        super().__init__(fileno=listening.detach())
        self._counts, self._secure = counts, secure

    def accept(self) -> tuple[socket.socket, Any]:
        """ConnectionAbortedError after several refusals, for the event loop to go on."""
        if self.family == socket.AF_UNIX:
            return super().accept()
        for _ in range(REFUSALS_PER_TURN):
            accepted, peer = super().accept()
            address = client_address(peer[0])
            if self._counts.enter(address):
                connection = CountedSocket(fileno=accepted.detach())
                connection.left = weakref.finalize(connection, self._counts.leave, address)
                return connection, peer
            with accepted:
                self._refuse(accepted)
        raise ConnectionAbortedError

    def _refuse(self, accepted: socket.socket) -> None:
        if self._secure:
            return
        accepted.setblocking(False)
        with contextlib.suppress(OSError):
            accepted.send(REFUSAL)
            accepted.shutdown(socket.SHUT_WR)
            accepted.recv(1 << 16)  # unread bytes would make the kernel drop the response


def _refusal() -> bytes:
    """The whole response as bytes: there is no HTTP connection for it."""
    error = TooManyConnections("too many open connections from this address", retry_after=1.0)
    body = responses.failure(error)
    head = [
        f"HTTP/1.1 {error.status} Service Unavailable",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"Retry-After: {error.retry_after:.0f}",
        "Connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


REFUSAL = _refusal()
