"""Servers of golden checkpoints without tokenizer files: they take token ids and return ids, logprobs and scores."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from lightllm_mp import Config, Server, launch
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig, SupervisorConfig
from tests.end_to_end.served import START, get, post, stream
from tests.end_to_end.test_served_model import children
from tests.paths import GOLDENS

TOLERANCE = 5e-4


@contextlib.contextmanager
def serving(folder: Path, **model: Any) -> Iterator[Server]:
    config = Config(
        model=ModelConfig(model_dir=str(folder), data_type="float32", device="cpu", **model),
        engine=EngineConfig(max_total_token_num=3000, threads=1),
        http=HttpConfig(port=0, disable_access_log=True),
        supervisor=SupervisorConfig(max_restarts=100),
    )
    with launch(config) as server:
        yield server.wait_ready(START)


def prompts(folder: str) -> list[dict[str, Any]]:
    return json.loads((GOLDENS / folder / "golden.json").read_text())["prompts"]


def refused(server: Server, path: str, body: dict[str, Any]) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server, path, body)
    assert caught.value.code == 400
    return json.load(caught.value)["error"]["message"]


@contextlib.contextmanager
def crash_during(server: Server) -> Iterator[None]:
    """Stop the worker at the start of the block and kill it half a second later."""
    worker = children(server)["worker0"]
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: (time.sleep(0.5), os.kill(worker, signal.SIGKILL)))
        yield


@pytest.fixture(scope="module")
def qwen() -> Iterator[Server]:
    with serving(GOLDENS / "qwen") as server:
        yield server


@pytest.fixture(scope="module")
def reward() -> Iterator[Server]:
    with serving(GOLDENS / "internlm2_reward") as server:
        yield server


def check_qwen(server: Server, prompt: dict[str, Any]) -> int:
    """Check the answer to one golden prompt. Returns the number of cached tokens."""
    parameters = {"max_new_tokens": 24, "ignore_eos": True, "return_details": True}
    answer = post(server, "/generate", {"inputs": prompt["input_ids"], "parameters": parameters})
    assert [token["id"] for token in answer["tokens"]] == prompt["greedy_ids"]
    wanted = load_file(GOLDENS / "qwen" / "golden.safetensors")[f"p{prompt['index']}.greedy_logprobs"].tolist()
    assert [token["logprob"] for token in answer["tokens"]] == pytest.approx(wanted, abs=TOLERANCE)
    assert answer["prompt_tokens"] == prompt["length"]
    return answer["cached_tokens"]


def test_qwen_prompts_of_all_lengths_twice(qwen: Server) -> None:
    for _ in range(2):
        cached = [check_qwen(qwen, prompt) for prompt in prompts("qwen")]
    assert cached == [prompt["length"] - 1 for prompt in prompts("qwen")]


def test_qwen_together(qwen: Server) -> None:
    with ThreadPoolExecutor(11) as pool:
        list(pool.map(lambda prompt: check_qwen(qwen, prompt), prompts("qwen")))


def test_qwen_keeps_its_factor_over_a_crash(qwen: Server) -> None:
    """Prompts of at most 32 tokens grow beyond the trained length of 32 before and after the worker is replaced."""
    chosen = [prompt for prompt in prompts("qwen") if prompt["length"] in (16, 20, 32, 33, 64)]
    bodies = [{"inputs": p["input_ids"], "parameters": {"max_new_tokens": 24, "ignore_eos": True}} for p in chosen]
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = [pool.submit(stream, qwen, body) for body in bodies]
        with crash_during(qwen):
            events = [answer.result() for answer in answers]
    assert [[event["token"]["id"] for event in one] for one in events] == [p["greedy_ids"] for p in chosen]


def test_text_without_a_tokenizer_is_refused(qwen: Server) -> None:
    assert "send token ids" in refused(qwen, "/generate", {"inputs": "a"})


def test_scores(reward: Server) -> None:
    for _ in range(2):
        for prompt in prompts("internlm2_reward"):
            answer = post(reward, "/get_score", {"ids": prompt["input_ids"]})
            assert answer["score"] == pytest.approx(prompt["score"], abs=TOLERANCE)
            assert answer["prompt_tokens"] == prompt["length"]
    without_the_last = prompts("internlm2_reward")[3]["input_ids"][:-1]
    assert post(reward, "/get_score", {"ids": without_the_last})["score"] == pytest.approx(
        prompts("internlm2_reward")[3]["score"], abs=TOLERANCE
    )


def test_a_score_survives_a_crash(reward: Server) -> None:
    prompt = prompts("internlm2_reward")[5]
    with crash_during(reward):
        answer = post(reward, "/get_score", {"ids": prompt["input_ids"]})
    assert answer["score"] == pytest.approx(prompt["score"], abs=TOLERANCE)
    assert get(reward, "/token_load")["current_load"] == 0


def test_who_answers_what(qwen: Server, reward: Server) -> None:
    assert "reward model" in refused(reward, "/generate", {"inputs": [5, 6]})
    assert "reward model" in refused(qwen, "/get_score", {"ids": [5, 6]})
    assert "send token ids" in refused(reward, "/get_score", {"chat": "a"})


def test_random_weights_need_a_configuration_only(tmp_path: Path) -> None:
    shutil.copy(GOLDENS / "mixtral" / "config.json", tmp_path)
    with serving(tmp_path, load_format="dummy") as server:
        body = {"inputs": [5, 6, 7], "parameters": {"max_new_tokens": 8, "ignore_eos": True}}
        assert post(server, "/generate", body)["count_output_tokens"] == 8
