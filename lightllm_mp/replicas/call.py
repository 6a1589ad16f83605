"""A request on its way from the front to a replica."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from msgspec import Struct


class RelayCall(Struct, frozen=True, kw_only=True):
    """`path` with its query. `headers`: those of the client that the engine needs, the label among them."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    tenant: str = ""
    """Hexadecimal; empty: there are no keys."""
    access: str = "user"
    """What the client's key opens; `relay`: the front asks for itself."""
    taken: int = 0
    """Events that the client has."""


class ReplicaLost(Exception):
    """The replica, or the way to it, is gone. `reached`: it had the request, which may be what ended it."""

    def __init__(self, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.reached = reached


class Fleet(Protocol):
    """The way to replicas."""

    def call(self, name: str, call: RelayCall) -> AsyncGenerator[list[bytes], None]:
        """The frames of the answer (frames.py), some at once. Raises ReplicaLost. Closing it cancels the request."""
