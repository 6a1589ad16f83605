"""The result of one check of `doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

Status = Literal["OK", "WARN", "FAIL"]


class Finding(Struct, frozen=True):
    """FAIL: a server does not start or does not work. WARN: it works, but not as well as it could. `advice`: the remedy
    for either."""

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
