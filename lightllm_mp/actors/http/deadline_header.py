"""The header X-Request-Timeout: the seconds within which the client needs its answer."""

from __future__ import annotations

import math
from time import monotonic

from aiohttp import web

from lightllm_mp.errors import InvalidRequest

HEADER = "X-Request-Timeout"
MOST = 86400.0


def deadline(request: web.Request) -> float:
    """Monotonic time in seconds at which the answer must be complete; infinite without the header.
    Raises InvalidRequest for anything but a number of seconds from 0 (exclusive) to a day."""
    given = request.headers.get(HEADER)
    if given is None:
        return math.inf
    try:
        seconds = float(given) if len(given) < 32 and given.isascii() else math.nan
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds <= MOST:
        raise InvalidRequest(f"{HEADER} is a number of seconds, at most {MOST:.0f}", param=HEADER)
    return monotonic() + seconds
