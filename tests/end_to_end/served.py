"""Helpers for the tests' clients of a served model."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from lightllm_mp import Server

START = 240.0
"""Seconds that a start may take on a busy machine."""


def post(server: Server, path: str, body: dict[str, Any], timeout: float = 60.0) -> Any:
    request = urllib.request.Request(server.base_url + path, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        return json.load(reply)


def get(server: Server, path: str) -> Any:
    with urllib.request.urlopen(server.base_url + path, timeout=10) as reply:
        return json.load(reply)


def stream(server: Server, body: dict[str, Any], timeout: float = 120.0, name: str = "") -> list[dict[str, Any]]:
    """Every event of /generate_stream; `name` is its X-Request-Id."""
    headers = {"X-Request-Id": name} if name else {}
    request = urllib.request.Request(server.base_url + "/generate_stream", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        return [json.loads(line[5:]) for line in reply if line.startswith(b"data:")]
