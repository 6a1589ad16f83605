"""Two real servers for all tests of this folder: one with the default model, and one with a tiny model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightllm_mp import Config, Server, launch
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig, SupervisorConfig
from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.default_model import find_default_model
from tests.actors.embedded import write_byte_tokenizer
from tests.end_to_end.served import START
from tests.paths import GOLDENS

GOLDEN = GOLDENS / "llama"


@pytest.fixture(scope="package")
def default_model() -> Path:
    try:
        return find_default_model(fetch=False)
    except ModelError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="package")
def server(default_model: Path) -> Iterator[Server]:
    with launch(settings()) as server:
        yield server.wait_ready(START)


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A checkpoint of random weights whose tokens are bytes. It runs the same program and generates hundreds of tokens
    at once, even on a slow machine."""
    folder = shutil.copytree(GOLDEN, tmp_path_factory.mktemp("tiny") / "llama")
    with launch(settings(str(write_byte_tokenizer(folder)))) as server:
        yield server.wait_ready(START)


def settings(model: str | None = None) -> Config:
    return Config(
        model=ModelConfig(model_dir=model, device="cpu" if model else "auto"),
        engine=EngineConfig(max_total_token_num=20_000),
        http=HttpConfig(port=0, disable_access_log=True),
        supervisor=SupervisorConfig(max_restarts=100),
    )
