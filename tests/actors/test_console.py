"""The command in the start-up block is one that this very model answers."""

from __future__ import annotations

import shlex

import pytest

from lightllm_mp.actors.console import example
from lightllm_mp.actors.http import api
from lightllm_mp.messages import Facts

URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize("has_tokenizer", [True, False])
@pytest.mark.parametrize("reward", [True, False])
def test_example(has_tokenizer: bool, reward: bool) -> None:
    program, url, option, body = shlex.split(example(URL, Facts(has_tokenizer=has_tokenizer, reward=reward)))
    assert (program, option) == ("curl", "-d")
    if reward:
        score = api.score_body(body.encode())
        assert url == f"{URL}/get_score"
        assert (score.ids if not has_tokenizer else score.chat) in ([1, 2, 3], "What is AI?")
    else:
        prompt = api.generate_body(body.encode()).inputs
        assert url == f"{URL}/generate"
        assert isinstance(prompt, str) == has_tokenizer
