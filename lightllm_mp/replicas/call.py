"""The request that a front sends to a replica, and the interface through which it sends."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from msgspec import Struct


class RelayCall(Struct, frozen=True, kw_only=True):
    """`path` includes the query. `headers`: the client's headers that the engine needs, with the request's label."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    tenant: str = ""
    """Hexadecimal; empty if there are no keys."""
    access: str = "user"
    """What the client's key permits; `relay`: the front sends the request for itself."""
    taken: int = 0
    """Events that the client has received."""


class ReplicaLost(Exception):
    """The replica, or the connection to it, is lost. `reached`: it had the request, which may have caused the loss."""

    def __init__(self, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.reached = reached


class Fleet(Protocol):
    """Sends requests to replicas by name."""

    def call(self, name: str, call: RelayCall) -> AsyncGenerator[list[bytes], None]:
        """The frames of the answer (frames.py), in lists. Raises ReplicaLost. Closing it cancels the request."""
