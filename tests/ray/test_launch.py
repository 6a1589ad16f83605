"""`launch(replicas=2)`: the methods of the server handle work on a fleet with its own Ray."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import urllib.request
from pathlib import Path

import pytest

from lightllm_mp import launch
from lightllm_mp.config import Config, EngineConfig, HttpConfig, ModelConfig
from lightllm_mp.errors import ConfigError, StartupError
from tests.actors.embedded import write_byte_tokenizer
from tests.paths import GOLDENS

START = 240.0
ASKED = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 50, "ignore_eos": True}}


def settings(folder: Path) -> Config:
    model = write_byte_tokenizer(shutil.copytree(GOLDENS / "llama", folder / "llama"))
    return Config(
        model=ModelConfig(model_dir=str(model), device="cpu"),
        engine=EngineConfig(max_total_token_num=4000, threads=1),
        http=HttpConfig(port=0, disable_access_log=True),
    )


def test_a_number_that_is_none():
    with pytest.raises(ConfigError, match="at least 1"):
        launch(Config(), replicas=0)


@pytest.mark.cluster
def test_a_fleet_has_the_handle_of_a_server(tmp_path: Path):
    pytest.importorskip("ray", reason="needs Ray (pip install 'lightllm-mp[ray]')")
    config = settings(tmp_path)
    with launch(config) as alone:
        alone.wait_ready(START)
        facts, whole = alone.facts, [event["token"]["text"] for event in alone.stream(ASKED)]
    with launch(config, replicas=2) as server:
        with pytest.raises(StartupError, match="wait_ready"):
            _ = server.base_url
        server.wait_ready(START)
        assert server.facts | {"url": ""} == facts | {"url": ""}
        assert server.health()
        assert [event["token"]["text"] for event in server.stream(ASKED)] == whole
        with urllib.request.urlopen(f"{server.base_url}/health") as answer:
            assert json.load(answer)["replicas"] >= 1
        with urllib.request.urlopen(f"{server.base_url}/live") as answer:  # the page
            assert answer.headers["Content-Type"].startswith("text/html")
        address = server.base_url.removeprefix("http://").split(":")
        running = server.stream(ASKED | {"parameters": {"max_new_tokens": 300, "ignore_eos": True}})
        next(running)
        server._signal(signal.SIGTERM)
        assert len(list(running)) == 299  # the drain finishes running requests
        assert server.drain(60) == 0
        assert server.exit_code == 0
        with pytest.raises(ConnectionError):
            socket.create_connection((address[0], int(address[1])), 1)
