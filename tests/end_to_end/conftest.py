"""One real server on the default model for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import START

from lightllm_mp import Config, Server, launch
from lightllm_mp.config import EngineConfig, HttpConfig, SupervisorConfig
from lightllm_mp.errors import ModelError
from lightllm_mp.text.default_model import find_default_model


@pytest.fixture(scope="package")
def default_model() -> Path:
    try:
        return find_default_model(fetch=False)
    except ModelError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="package")
def server(default_model: Path) -> Iterator[Server]:
    config = Config(
        engine=EngineConfig(max_total_token_num=20_000),
        http=HttpConfig(port=0, disable_access_log=True),
        supervisor=SupervisorConfig(max_restarts=100),
    )
    with launch(config) as server:
        yield server.wait_ready(START)
