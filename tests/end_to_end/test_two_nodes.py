"""Two nodes of one rank each, started as an operator starts them, with a tiny checkpoint with images."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from lightllm_mp import Config, Engine, Server, launch
from lightllm_mp.actors.http.security.keys import RELAY_ENVIRONMENT
from lightllm_mp.actors.node import node_key
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig, MultimodalConfig, SupervisorConfig
from lightllm_mp.errors import ConfigError
from tests.end_to_end.image_served import golden_body, ids, prompts
from tests.end_to_end.served import START, post, stream
from tests.end_to_end.test_served_model import children
from tests.paths import GOLDENS

FOLDER = "qwen3_vl"
"""A checkpoint whose image embeddings have several planes."""


def free_port() -> int:
    """A free port; the next port is free too."""
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            if port < 65000:
                with socket.create_server(("127.0.0.1", port + 1)):
                    return port


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv(RELAY_ENVIRONMENT, "of-both-nodes")
    return Config(
        model=ModelConfig(model_dir=str(GOLDENS / FOLDER), data_type="float32", device="cpu"),
        engine=EngineConfig(max_total_token_num=2000, threads=1, tp=2, nnodes=2, nccl_port=free_port()),
        http=HttpConfig(port=0, disable_access_log=True),
        multimodal=MultimodalConfig(enable_multimodal=True, cache_capacity=10),
        supervisor=SupervisorConfig(max_restarts=100),
    )


def elsewhere(config: Config, folder: Path) -> Config:
    """The configuration of the other node, whose copy of the model is in another folder."""
    found = shutil.copytree(GOLDENS / FOLDER, folder / "copy", dirs_exist_ok=True)
    return replace(ranked(config), model=replace(config.model, model_dir=str(found)))


def ranked(config: Config) -> Config:
    return replace(config, engine=replace(config.engine, node_rank=1))


def golden_answers(server: Server) -> None:
    """Check that the answers are those of one rank."""
    for prompt in prompts(FOLDER):
        assert ids(post(server, "/generate", golden_body(FOLDER, prompt))) == prompt["greedy_ids"]


def test_answers_of_two_nodes_through_the_death_of_one(settings: Config, tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    long = {"inputs": [5, 6, 7, 8], "parameters": {"max_new_tokens": 300, "ignore_eos": True}}
    with launch(settings) as server:
        with launch(elsewhere(settings, tmp_path)) as agent:
            server.wait_ready(START)
            assert server.facts["device"].startswith("2 x ")
            assert set(children(agent)) == {"worker1"}
            golden_answers(server)
            undisturbed = [event["token"]["id"] for event in stream(server, long)]
            seen: list[int] = []
            reader = threading.Thread(
                target=lambda: seen.extend(event["token"]["id"] for event in stream(server, long, START))
            )
            reader.start()
            time.sleep(0.3)
            rank = children(agent)["worker1"]
            os.kill(agent.pid, signal.SIGKILL)
        with launch(elsewhere(settings, tmp_path)) as agent:
            reader.join(START)
            assert seen == undisturbed
            assert not Path(f"/proc/{rank}").exists()
            golden_answers(server)
            assert server.drain(START) == 0
            assert agent.drain(START) == 0
    assert set(os.listdir("/dev/shm")) == before


def test_what_cannot_be_the_first_node(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="an engine in a program is node 0"):
        Engine(ranked(settings))
    monkeypatch.delenv(RELAY_ENVIRONMENT)
    with pytest.raises(ConfigError, match="--nnodes needs a secret that all nodes have in LIGHTLLM_MP_RELAY_KEYS"):
        node_key(os.environ)
