"""The main task: a real model answers many clients at once over HTTP, and a crash changes no answer."""

from __future__ import annotations

import json
import random
import re
import socket
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from lightllm_mp import Config, Server, launch
from lightllm_mp.config import HttpConfig, ModelConfig
from tests.end_to_end.served import START, get, post, stream

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def prompt(number: int, tokens: int = 40, **more: Any) -> dict[str, Any]:
    """A body whose answer depends on the number; every second body samples."""
    rules = {"max_new_tokens": tokens, "do_sample": number % 2 == 1, "temperature": 0.8, "seed": number}
    return {
        "inputs": CHAT.format(f"Write one sentence about the number {number}."),
        "parameters": rules | more,
    }


def long(number: int) -> dict[str, Any]:
    """For a tiny model: 300 tokens."""
    return prompt(number, 300, ignore_eos=True)


def text(events: list[dict[str, Any]]) -> str:
    assert events[-1]["finished"]
    assert [event["finished"] for event in events[:-1]] == [False] * (len(events) - 1)
    return "".join(event["token"]["text"] for event in events)


def until_idle(server: Server, seconds: float = 20.0) -> None:
    """Wait until no request holds a KV slot."""
    deadline = time.monotonic() + seconds
    while get(server, "/token_load")["current_load"] > 0:
        assert time.monotonic() < deadline, "KV slots are still held"
        time.sleep(0.05)


def test_the_command_of_the_readme(server: Server) -> None:
    answer = post(
        server, "/generate", {"inputs": "What is AI?", "parameters": {"max_new_tokens": 17, "frequency_penalty": 1}}
    )
    assert answer["count_output_tokens"] == 17
    assert answer["finish_reason"] == "length"
    assert re.search(r"\b(AI|intelligence|machine|computer)", answer["generated_text"][0])


def test_the_chat_template_gives_a_right_answer(server: Server) -> None:
    body = {"inputs": CHAT.format("What is the capital of France?"), "parameters": {"max_new_tokens": 40}}
    answer = post(server, "/generate", body)
    assert "Paris" in answer["generated_text"][0]
    assert answer["finish_reason"] == "stop"
    assert "<|im_end|>" not in answer["generated_text"][0]


def test_whole_and_streamed_answers_agree(server: Server) -> None:
    whole = post(server, "/generate", prompt(3))
    events = stream(server, prompt(3))
    assert text(events) == whole["generated_text"][0]
    assert len(events) == whole["count_output_tokens"]


def test_64_streams_complete_and_leave_nothing(tiny: Server) -> None:
    alone = [text(stream(tiny, long(number))) for number in range(4)]
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(lambda number: text(stream(tiny, long(number))), range(64)))
    assert together[:4] == alone
    assert len(set(together)) == 64
    until_idle(tiny)


def test_streams_of_the_default_model_are_alone_what_they_are_together(server: Server) -> None:
    alone = [text(stream(server, prompt(number, 12))) for number in range(3)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda number: text(stream(server, prompt(number, 12))), range(8)))
    assert together[:3] == alone
    until_idle(server)


def test_stop_strings_are_not_shown(server: Server) -> None:
    body = {"inputs": CHAT.format("Count from 1 to 9."), "parameters": {"max_new_tokens": 60}}
    free = post(server, "/generate", body)["generated_text"][0]
    stop = free[len(free) // 2 : len(free) // 2 + 3]
    body["parameters"]["stop_sequences"] = [stop]
    events = stream(server, body)
    assert text(events) == free[: free.index(stop)]
    assert events[-1]["finish_reason"] == "stop"
    until_idle(server)


def test_a_special_token_that_does_not_end_the_model_is_a_stop_string_too(server: Server) -> None:
    """The model may produce only the id of the stop string. The text hides it unless the client wants it."""
    rules = {"max_new_tokens": 9, "allowed_token_ids": [1], "stop_sequences": ["<|im_start|>"], "n": 2}
    for more, shown in (({}, ""), ({"include_stop_str_in_output": True}, "<|im_start|>")):
        for skip in (True, False):
            parameters = {**rules, **more, "skip_special_tokens": skip}
            answer = post(server, "/generate", {"inputs": "Hello", "parameters": parameters})
            assert answer["generated_text"] == [shown] * 2
            assert answer["finish_reason"] == ["stop"] * 2
            assert answer["count_output_tokens"] == [1] * 2
    until_idle(server)


def test_n_answers_share_one_prefill(server: Server) -> None:
    body = {"inputs": "Once upon a time", "parameters": {"n": 3, "do_sample": True, "seed": 5, "max_new_tokens": 12}}
    answer = post(server, "/generate", body)
    assert len(set(answer["generated_text"])) == 3
    assert post(server, "/generate", body) == answer
    one = {**body, "parameters": {**body["parameters"], "n": 1, "seed": 6}}
    assert post(server, "/generate", one)["generated_text"][0] == answer["generated_text"][1]


def test_logprobs_and_prompt_logprobs(server: Server) -> None:
    parameters = {"max_new_tokens": 4, "return_details": True, "logprobs": 3, "prompt_logprobs": 2}
    answer = post(server, "/generate", {"inputs": "The sky is blue and the grass is", "parameters": parameters})
    assert len(answer["tokens"]) == len(answer["logprobs"]) == 4
    for detail, ranked in zip(answer["tokens"], answer["logprobs"], strict=True):
        best = max(ranked.values(), key=lambda entry: entry["logprob"])
        assert ranked[str(detail["id"])] == best  # greedy
        assert detail["logprob"] <= 0
    assert len(answer["prompt_logprobs"]) == answer["prompt_tokens"] == len(answer["prompt_token_ids"])
    assert answer["prompt_logprobs"][0] is None


def test_allowed_ids_are_all_that_is_produced(tiny: Server) -> None:
    rules = {"max_new_tokens": 60, "ignore_eos": True, "do_sample": True, "temperature": 1000.0, "seed": 1}
    body = {"inputs": "a", "parameters": {**rules, "allowed_token_ids": [10, 11, 12], "repetition_penalty": 100.0}}
    assert {event["token"]["id"] for event in stream(tiny, body)} == {10, 11, 12}
    body["parameters"]["allowed_token_ids"] = [10, 10**6]
    for path in ("/generate", "/generate_stream"):
        with pytest.raises(HTTPError) as caught:
            post(tiny, path, body)
        error = json.loads(caught.value.read())["error"]
        assert (caught.value.code, error["code"], error["param"]) == (400, "invalid_request", "allowed_token_ids")


def test_a_client_that_leaves_frees_its_slots(server: Server) -> None:
    host, port = server.base_url.removeprefix("http://").split(":")
    body = b'{"inputs": "Tell me a very long story", "parameters": {"max_new_tokens": 4000, "ignore_eos": true}}'
    for path in ("/generate", "/generate_stream"):
        with socket.create_connection((host, int(port)), timeout=10) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            while get(server, "/token_load")["current_load"] == 0:
                time.sleep(0.02)
        until_idle(server)  # long before 4000 tokens


def test_no_process_holds_a_library_that_it_does_not_use(server: Server) -> None:
    maps = {
        name: Path(f"/proc/{pid}/maps").read_text()
        for name, pid in {**children(server), "supervisor": server.pid}.items()
    }
    assert len(maps) == 7
    assert [name for name, mapped in maps.items() if "libtorch" in mapped] == ["worker0"]
    assert [name for name, mapped in maps.items() if "aiohttp" in mapped] == ["http"]
    assert {name for name, mapped in maps.items() if "numpy" not in mapped} == {"supervisor", "http"}


@pytest.mark.skipif("+cpu" not in version("torch"), reason="another build of torch takes more")
def test_all_processes_take_little_memory_beside_the_weights(default_model: Path) -> None:
    """The memory after a start. Shared pages count once."""
    taken = 0
    with launch(Config(http=HttpConfig(port=0), model=ModelConfig(device="cpu"))) as server:
        weights = server.wait_ready(START).facts["weight_bytes"]
        assert server.facts["max_context"] == 8192
        assert server.facts["eos_ids"]
        for pid in (server.pid, *children(server).values()):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            taken += int(re.search(r"^Pss: +(\d+)", rollup, re.MULTILINE)[1]) << 10
    assert weights < taken < weights + (450 << 20)


def children(server: Server) -> dict[str, int]:
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(server.pid)]
    listing = subprocess.run(command, capture_output=True, text=True)
    lines = listing.stdout.splitlines()
    found = (re.match(r"\s*(\d+) .*lightllm_mp\.actors\.runtime\.child_main (\w+)", line) for line in lines)
    return {match[2]: int(match[1]) for match in found if match}


@pytest.mark.parametrize("victim", ["tokenizer", "router", "guide", "detokenizer", "worker0"])
def test_a_killed_process_changes_no_answer(tiny: Server, victim: str) -> None:
    undisturbed = [text(stream(tiny, long(number))) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(lambda number=number: text(stream(tiny, long(number)))) for number in range(8)]
        while get(tiny, "/token_load")["current_load"] == 0 and not any(answer.done() for answer in answers):
            time.sleep(0.01)
        time.sleep(random.random() / 4)
        subprocess.run(["kill", "-9", str(children(tiny)[victim])], check=True)
        assert [answer.result() for answer in answers] == undisturbed
    until_idle(tiny)


def test_a_killed_worker_of_the_default_model_changes_no_answer(server: Server) -> None:
    undisturbed = [text(stream(server, prompt(number, 24))) for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(lambda number=number: text(stream(server, prompt(number, 24)))) for number in range(2)]
        time.sleep(random.random() / 2)
        subprocess.run(["kill", "-9", str(children(server)["worker0"])], check=True)
        assert [answer.result() for answer in answers] == undisturbed
    until_idle(server)


def test_the_port_survives_its_process(server: Server) -> None:
    """Connections of a killed front break. Its requests continue until their client returns, here to drop them, and new
    requests are served again."""
    body = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 2000, "ignore_eos": True}}
    with ThreadPoolExecutor(1) as pool:
        broken = pool.submit(stream, server, body, name="mine")
        while get(server, "/token_load")["current_load"] == 0:
            time.sleep(0.02)
        old = children(server)["http"]
        subprocess.run(["kill", "-9", str(old)], check=True)
        with pytest.raises((OSError, HTTPException, IndexError, AssertionError)):
            text(broken.result())
    deadline = time.monotonic() + 30
    while not server.health():  # 503 until the new front has begun; the listening socket never closes
        assert time.monotonic() < deadline
        time.sleep(0.05)
    answer = post(server, "/generate", prompt(2))
    assert answer["count_output_tokens"] > 0
    assert children(server)["http"] != old
    drop = urllib.request.Request(f"{server.base_url}/requests/mine", method="DELETE")
    with urllib.request.urlopen(drop, timeout=10) as reply:
        assert reply.status == 204
    until_idle(server)
