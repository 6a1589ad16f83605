"""A client of /generate_stream: its answers outlive their connection, and the process that serves them."""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import ssl
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from lightllm_mp.errors import EngineError

PAUSE = 0.2
"""Seconds between two attempts to come back."""


def stream(
    base_url: str,
    body: dict[str, Any],
    *,
    key: str = "",
    trust: ssl.SSLContext | None = None,
    timeout: float = 60.0,
    patience: float = 30.0,
) -> Iterator[dict[str, Any]]:
    """Yield every event of the answer once. After a broken connection it comes back, for `patience` seconds without an
    event; the server keeps the answer for its --resume-window. `timeout`: seconds between two events. EngineError says
    why the server refused or failed the request; OSError or HTTPException: it cannot be reached again."""
    name, last = secrets.token_hex(16), 0
    deadline = time.monotonic() + patience
    while True:
        try:
            for number, event in _events(base_url, body, name, last, key, trust, timeout):
                last, deadline = number, time.monotonic() + patience
                yield event
                if event["finished"]:
                    return
            raise ConnectionError("the connection broke")
        except (OSError, http.client.HTTPException):
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE)


def _events(
    base_url: str,
    body: dict[str, Any],
    name: str,
    last: int,
    key: str,
    trust: ssl.SSLContext | None,
    timeout: float,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The events after number `last` that one connection brings."""
    url = urlsplit(base_url)
    assert url.hostname is not None
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=timeout)
    if url.scheme == "https":
        connection = http.client.HTTPSConnection(url.hostname, url.port, timeout=timeout, context=trust)
    headers = {"X-Request-Id": name, "Accept": "text/event-stream"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    headers |= {"Last-Event-ID": str(last)} if last else {}
    with contextlib.closing(connection):
        connection.request("POST", "/generate_stream", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise EngineError(_message(response.read()))
        number = last
        while line := response.readline():
            if line.startswith(b"id:"):
                number = int(line[3:])
            elif line.startswith(b"data:") and line.endswith(b"\n"):
                event = json.loads(line[5:])
                if "error" in event:
                    raise EngineError(str(event["error"]["message"]))
                yield number, event


def _message(data: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(data)["error"]["message"])
    return data[:200].decode("utf-8", "replace")
