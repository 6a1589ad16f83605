"""One real server on the default model for all tests of this folder."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from lightllm_mp import Config, Server, launch
from lightllm_mp.config import EngineConfig, HttpConfig, SupervisorConfig
from lightllm_mp.errors import ModelError
from lightllm_mp.text.default_model import find_default_model

START = 240.0
"""Seconds a start may take on a busy machine."""


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    try:
        find_default_model(fetch=False)
    except ModelError as error:
        pytest.skip(error.message)
    config = Config(
        engine=EngineConfig(max_total_token_num=20_000),
        http=HttpConfig(port=0, disable_access_log=True),
        supervisor=SupervisorConfig(max_restarts=100),
    )
    with launch(config) as server:
        yield server.wait_ready(START)


def post(server: Server, path: str, body: dict[str, Any], timeout: float = 60.0) -> Any:
    request = urllib.request.Request(server.base_url + path, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        return json.load(reply)


def get(server: Server, path: str) -> Any:
    with urllib.request.urlopen(server.base_url + path, timeout=10) as reply:
        return json.load(reply)


def stream(server: Server, body: dict[str, Any], timeout: float = 120.0) -> list[dict[str, Any]]:
    """Every event of /generate_stream."""
    request = urllib.request.Request(server.base_url + "/generate_stream", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        return [json.loads(line[5:]) for line in reply if line.startswith(b"data:")]
