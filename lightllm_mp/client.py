"""A client of streamed answers. A stream survives a broken connection and the death of the process that serves it."""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lightllm_mp.errors import EngineError

PAUSE = 0.2
"""Seconds between two attempts to reconnect."""

Event = dict[str, Any]
NumberedEvents = Iterator[tuple[int, Event]]


def stream(
    base_url: str,
    body: dict[str, Any],
    *,
    key: str = "",
    trust: ssl.SSLContext | None = None,
    timeout: float = 60.0,
    patience: float = 30.0,
) -> Iterator[Event]:
    """Yield every event of an answer of /generate_stream once. After a broken connection it reconnects, for at most
    `patience` seconds without an event; the server keeps the answer for its --resume-window. `timeout`: the most
    seconds between two events. EngineError says why the server refused or failed the request. OSError or HTTPException:
    the server cannot be reached again."""
    name, server = secrets.token_hex(16), _Peer(base_url, key, trust, timeout)
    return _resumed(lambda last: server.events("POST", "/generate_stream", body, name, last), patience)


def stream_chat(
    base_url: str,
    body: dict[str, Any],
    *,
    key: str = "",
    trust: ssl.SSLContext | None = None,
    timeout: float = 60.0,
    patience: float = 30.0,
) -> Iterator[Event]:
    """As `stream`, for chunks of /v1/chat/completions. The chunk with the usage has no number and may come twice."""
    name, server = secrets.token_hex(16), _Peer(base_url, key, trust, timeout)
    sent = arrived = False

    def come(last: int) -> NumberedEvents:
        nonlocal sent, arrived
        if sent:
            try:
                yield from server.events("GET", f"/requests/{name}", None, name, last)
                return
            except EngineError as error:
                if error.status != 404 or arrived:
                    raise  # else the server never got the request
        sent = True
        for event in server.events("POST", "/v1/chat/completions", {**body, "stream": True}, name, last):
            arrived = True
            yield event

    return _resumed(come, patience)


def _resumed(come: Callable[[int], NumberedEvents], patience: float) -> Iterator[Event]:
    """The events of all connections, one after another. `come` yields those after a number until the answer's end."""
    last, deadline = 0, time.monotonic() + patience
    while True:
        try:
            for number, event in come(last):
                last, deadline = number, time.monotonic() + patience
                yield event
            return
        except (OSError, http.client.HTTPException):
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE)


def get_json(base_url: str, path: str, *, key: str = "", timeout: float = 5.0) -> Any:
    """The JSON value at a path. EngineError with the server's status if it refuses, with 404 if the answer is not JSON;
    OSError or HTTPException if it cannot be reached."""
    connection, headers = _Peer(base_url, key, None, timeout).connect()
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        data = response.read(1 << 20)
    if response.status != 200:
        raise _refusal(response.status, data)
    try:
        return json.loads(data)
    except ValueError:
        raise _refusal(404, b"the answer is not JSON") from None


class _Peer(NamedTuple):
    """A server and how to reach it."""

    base_url: str
    key: str
    trust: ssl.SSLContext | None
    timeout: float

    def connect(self) -> tuple[http.client.HTTPConnection, dict[str, str]]:
        """A new connection, and the headers of each request."""
        url = urlsplit(self.base_url)
        assert url.hostname is not None
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        if url.scheme == "https":
            return http.client.HTTPSConnection(
                url.hostname, url.port, timeout=self.timeout, context=self.trust
            ), headers
        return http.client.HTTPConnection(url.hostname, url.port, timeout=self.timeout), headers

    def events(self, method: str, path: str, body: object, name: str, last: int) -> NumberedEvents:
        """The events of one connection after number `last`, with their numbers. ConnectionError if it breaks before the
        answer's end."""
        connection, headers = self.connect()
        headers |= {"X-Request-Id": name, "Accept": "text/event-stream"}
        headers |= {"Last-Event-ID": str(last)} if last else {}
        headers |= {"Content-Type": "application/json"} if body else {}
        with contextlib.closing(connection):
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _refusal(response.status, response.read())
            yield from _numbered(response, last)


def _numbered(response: http.client.HTTPResponse, last: int) -> NumberedEvents:
    number = last
    while line := response.readline():
        if line.startswith(b"id:"):
            number = int(line[3:])
        elif line.startswith(b"data:") and line.endswith(b"\n"):
            if line[5:].strip() == b"[DONE]":
                return
            event = json.loads(line[5:])
            if "error" in event:
                raise EngineError(str(event["error"]["message"]))
            yield number, event
            if event.get("finished"):
                return
    raise ConnectionError("the connection broke")


def _refusal(status: int, data: bytes) -> EngineError:
    """The server's error, with its status."""
    error = EngineError(data[:200].decode("utf-8", "replace") or f"the server answered with status {status}")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        error = EngineError(str(json.loads(data)["error"]["message"]))
    error.status = status
    return error
