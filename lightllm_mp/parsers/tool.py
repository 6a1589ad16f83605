"""A tool that the model may call."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Tool(Struct, frozen=True):
    """`parameters`: JSON schema of the arguments, an object; None: any. `strict`: the arguments must be valid."""

    name: str
    parameters: dict[str, Any] | None = None
    strict: bool = False
