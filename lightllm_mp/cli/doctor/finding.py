"""What a check found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

Status = Literal["OK", "WARN", "FAIL"]


class Finding(Struct, frozen=True):
    """FAIL: a server would not start or not work. WARN: it works, and less well than it could. `advice`: what to do
    about either."""

    status: Status
    name: str
    text: str
    advice: str = ""


Findings = Iterator[Finding]


def ok(name: str, text: str) -> Finding:
    return Finding("OK", name, text)


def warn(name: str, text: str, advice: str) -> Finding:
    return Finding("WARN", name, text, advice)


def fail(name: str, text: str, advice: str) -> Finding:
    return Finding("FAIL", name, text, advice)
