"""Two ranks behind the HTTP port and inside the offline engine, on the tiny reference checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace
from safetensors.numpy import load_file

from lightllm_mp import Config, Engine, Server, launch
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig, SupervisorConfig
from lightllm_mp.errors import ConfigError
from tests.actors.embedded import write_byte_tokenizer
from tests.end_to_end.served import START, post, stream
from tests.end_to_end.test_served_model import children
from tests.paths import GOLDENS


def settings(name: str, ranks: int = 2, ep: int = 1) -> Config:
    return Config(
        model=ModelConfig(model_dir=str(GOLDENS / name), data_type="float32", device="cpu"),
        engine=EngineConfig(max_total_token_num=2000, tp=ranks, ep=ep),
        http=HttpConfig(port=0, disable_access_log=True),
        supervisor=SupervisorConfig(max_restarts=100),
    )


def golden(name: str) -> list[tuple[list[int], list[int]]]:
    """Prompts and their greedy continuations."""
    tensors = load_file(GOLDENS / name / "golden.safetensors")
    count = len(json.loads((GOLDENS / name / "golden.json").read_text())["prompts"])
    return [(tensors[f"p{i}.input_ids"].tolist(), tensors[f"p{i}.greedy_ids"].tolist()) for i in range(count)]


def ranks_of(server: Server) -> list[int]:
    """The pids of the worker processes, in order of rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                words = (entry / "cmdline").read_text().split("\0")
            except OSError:
                continue
            name = next((word for word in words if word.startswith("worker")), None)
            if parent == server.pid and name is not None:
                found[name] = int(entry.name)
    return [found[name] for name in sorted(found)]


def test_served_over_http_and_through_the_death_of_each_rank() -> None:
    """Each rank has four whole experts of eight."""
    before = set(os.listdir("/dev/shm"))
    parameters = {"max_new_tokens": 24, "ignore_eos": True}
    long = {"inputs": golden("mixtral")[0][0], "parameters": {"max_new_tokens": 300, "ignore_eos": True}}
    with launch(settings("mixtral", ep=2)) as server:
        server.wait_ready(START)
        assert server.facts["device"].startswith("2 x ")
        assert len(ranks_of(server)) == 2
        for ids, greedy in golden("mixtral"):
            reply = post(server, "/generate", {"inputs": ids, "parameters": {**parameters, "return_details": True}})
            assert [token["id"] for token in reply["tokens"]] == greedy
        undisturbed = [event["token"]["id"] for event in stream(server, long)]
        for victim in range(2):
            seen: list[int] = []
            reader = threading.Thread(
                target=lambda seen=seen: seen.extend(event["token"]["id"] for event in stream(server, long))
            )
            reader.start()
            time.sleep(0.2)
            old = ranks_of(server)
            os.kill(old[victim], signal.SIGKILL)
            reader.join(START)
            assert seen == undisturbed
            assert not set(old) & set(ranks_of(server))
        assert server.drain(START) == 0
    assert set(os.listdir("/dev/shm")) == before


def test_the_offline_engine() -> None:
    """yi: seven query heads and one key-value head."""
    with Engine(settings("yi")) as engine:
        answers = engine.generate([ids for ids, _ in golden("yi")], max_new_tokens=24, ignore_eos=True)
        assert [answer.token_ids for answer in answers] == [greedy for _, greedy in golden("yi")]


def test_more_ranks_than_heads() -> None:
    with pytest.raises(ConfigError, match="--tp 5: the model has 4 attention heads"):
        Engine(settings("llama", ranks=5))


def test_a_dense_model_has_no_experts_to_share_out() -> None:
    with pytest.raises(ConfigError, match="--ep 2: the model has no experts"):
        Engine(settings("llama", ep=2))


@pytest.mark.parametrize("victim", ["guide", "detokenizer", "worker1"])
def test_constrained_answers_of_two_ranks(tiny_folder: Path, victim: str) -> None:
    """Only rank 0 waits for masks. After the death of a process the ranks leave the same step or are replaced."""
    rules = {"max_new_tokens": 200, "ignore_eos": True, "regular_constraint": "([a-z]{1,9} )*", "do_sample": True}
    asked = [{"inputs": "Hi", "parameters": rules | {"seed": seed, "temperature": 2.0}} for seed in range(3)]
    config = replace(settings("llama"), model=ModelConfig(model_dir=str(tiny_folder), device="cpu"))
    with launch(replace(config, engine=replace(config.engine, run_ahead=1))) as server:
        server.wait_ready(START)
        undisturbed = [[event["token"]["id"] for event in stream(server, one)] for one in asked]
        with ThreadPoolExecutor(3) as pool:
            seen = [pool.submit(stream, server, one) for one in asked]
            time.sleep(0.2)
            before = ranks_of(server)
            os.kill(children(server)[victim], signal.SIGKILL)
            assert [[event["token"]["id"] for event in one.result()] for one in seen] == undisturbed
        assert (ranks_of(server) == before) == (victim != "worker1"), "no rank waited for ever"
        assert server.drain(START) == 0


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """The checkpoint with a tokenizer of bytes."""
    return write_byte_tokenizer(shutil.copytree(GOLDENS / "llama", tmp_path / "llama"))
