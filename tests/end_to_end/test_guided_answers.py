"""Constrained answers over HTTP: every kind, the death of every process, hostile guides beside others, and no leak."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace

from lightllm_mp import Server, launch
from tests.end_to_end.conftest import settings
from tests.end_to_end.served import START, post, stream
from tests.end_to_end.test_served_model import children, text, until_idle
from tests.guides.test_guides import HARMLESS, HOSTILE

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
LINES = 'start: LINE ("\\n" LINE)*\nLINE: /[A-Z][a-z]{1,8} is [0-9]{1,3}/'
PROMPT = "<|im_start|>user\nDescribe a person.<|im_end|>\n<|im_start|>assistant\n"
PARAMETERS = {"json_schema": "guided_json", "regex": "regular_constraint", "gbnf": "guided_grammar"}


@pytest.fixture(scope="module")
def guided(default_model: Path) -> Iterator[Server]:
    """A server with run-ahead, as on a GPU."""
    usual = settings()
    with launch(replace(usual, engine=replace(usual.engine, run_ahead=1))) as server:
        yield server.wait_ready(START)


def body(seed: int = 0, **parameters: Any) -> dict[str, Any]:
    rules = {"max_new_tokens": 120, "do_sample": seed > 0, "seed": seed, "temperature": 1.2}
    return {"inputs": PROMPT, "parameters": rules | parameters}


def answer(server: Server, asked: dict[str, Any]) -> str:
    found = post(server, "/generate", asked)
    assert found["finish_reason"] == "stop"
    return found["generated_text"][0]


def refusal(server: Server, asked: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(server, "/generate", asked)
    assert refused.value.code == 400
    return json.load(refused.value)["error"]


def outcome(server: Server, asked: dict[str, Any]) -> str:
    """Returns "answered" or the code of the error."""
    try:
        post(server, "/generate", asked)
    except urllib.error.HTTPError as error:
        return json.load(error)["error"]["code"]
    return "answered"


@pytest.mark.parametrize("seed", [0, 5])
def test_kinds(guided: Server, seed: int) -> None:
    person = json.loads(answer(guided, body(seed, guided_json=PERSON)))
    assert {"name", "age"} <= person.keys() <= {"name", "age", "tags"}
    assert json.loads(answer(guided, body(seed, guided_json=json.dumps(PERSON)))).keys() >= {"name", "age"}
    assert re.fullmatch(r"\d{3}-\d{4}", answer(guided, body(seed, regular_constraint=r"\d{3}-\d{4}")))
    assert answer(guided, body(seed, guided_grammar='root ::= "yes" | "no" [!]+')).strip("!") in ("yes", "no")
    ends = body(seed, guided_grammar='start: "a"~3 | "b"', stop_sequences=["aa"])
    assert answer(guided, ends) in ("", "a", "b")


@pytest.mark.parametrize("seed", [0, 7])
def test_streamed_whole_and_without_run_ahead(guided: Server, server: Server, seed: int) -> None:
    asked = body(seed, guided_grammar=LINES, max_new_tokens=60)
    whole = post(guided, "/generate", asked)["generated_text"][0]
    assert text(stream(guided, asked)) == whole
    assert post(server, "/generate", asked)["generated_text"][0] == whole


def test_four_answers_to_a_prompt(guided: Server) -> None:
    found = post(guided, "/generate", body(3, guided_json=PERSON, n=4))["generated_text"]
    assert len(found) == 4
    whole = [one for one in found if one.rstrip().endswith("}")]
    assert len(set(found)) > 1
    assert all(json.loads(one).keys() >= {"name", "age"} for one in whole)


def test_other_rules_do_not_let_other_ids_in(guided: Server) -> None:
    wild = {"temperature": 50.0, "repetition_penalty": 3.0, "logit_bias": {str(i): 90.0 for i in range(100, 120)}}
    for rules in (wild, {"ignore_eos": True, **wild}, {"min_new_tokens": 4, **wild}, {"top_k": 5}):
        assert re.fullmatch("[ab]{4,9}c", answer(guided, body(1, regular_constraint="[ab]{4,9}c", **rules)))


def test_rules_that_leave_no_id_fail_their_own_request(guided: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(answer, guided, body(guided_json=PERSON))
        error = refusal(guided, body(regular_constraint="no", min_new_tokens=20))
        assert other.result()
    assert error["code"] == "invalid_guide"


@pytest.mark.parametrize("victim", ["guide", "router", "worker0", "detokenizer", "tokenizer"])
def test_a_killed_process_changes_no_answer(guided: Server, victim: str) -> None:
    asked = [body(seed, guided_grammar=LINES, ignore_eos=True, max_new_tokens=70) for seed in range(3)]
    asked.append(body(2, max_new_tokens=70, ignore_eos=True))
    undisturbed = [text(stream(guided, one)) for one in asked]
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(lambda one=one: text(stream(guided, one))) for one in asked]
        time.sleep(0.2 + random.random())
        os.kill(children(guided)[victim], signal.SIGKILL)
        assert [found.result() for found in answers] == undisturbed
    until_idle(guided)
    until_closed(guided)


def test_hostile_guides_beside_a_stream(guided: Server) -> None:
    """Each hostile guide is refused, fails or is answered, and a stream beside it has no long pause."""
    gaps: list[float] = []

    def watch() -> None:
        request = urllib.request.Request(
            guided.base_url + "/generate_stream",
            json.dumps(body(max_new_tokens=300, ignore_eos=True, regular_constraint="[a-z ]*")).encode(),
        )
        with urllib.request.urlopen(request, timeout=120) as reply:
            last = time.monotonic()
            for line in reply:
                if line.startswith(b"data:"):
                    gaps.append(time.monotonic() - last)
                    last = time.monotonic()

    restarts = children(guided)["guide"]
    with ThreadPoolExecutor(2) as pool:
        watched = pool.submit(watch)
        for guides in (HOSTILE, HARMLESS):
            for name, guide in guides.items():
                if guide.kind not in PARAMETERS:
                    continue
                asked = body(max_new_tokens=6, **{PARAMETERS[guide.kind]: guide.source})
                if guides is HOSTILE:
                    assert refusal(guided, asked)["code"] in ("invalid_guide", "invalid_request"), name
                    continue
                assert outcome(guided, asked) in ("answered", "invalid_guide"), name
        watched.result()
    assert len(gaps) == 300
    assert max(gaps[1:]) < 2.0
    assert children(guided)["guide"] == restarts, "the guide actor lives"


def test_the_guide_actor_has_a_limit_of_memory(guided: Server) -> None:
    limits = Path(f"/proc/{children(guided)['guide']}/limits").read_text()
    assert re.search(r"^Max data size +(\d+) ", limits, re.MULTILINE)[1] == str(4 << 30)  # type: ignore[index]


def open_guides(server: Server) -> int:
    with urllib.request.urlopen(server.base_url + "/metrics", timeout=10) as reply:
        found = re.search(r"^lightllm_constrained_answers\{.*\} (\S+)$", reply.read().decode(), re.MULTILINE)
    return int(float(found[1])) if found else 0


def until_closed(server: Server) -> None:
    """The guide learns of an answer's end a little after the slots are free."""
    deadline = time.monotonic() + 20
    while open_guides(server):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_thousand_aborted_requests_leave_nothing(tiny: Server) -> None:
    """Clients disconnect while their guide is compiled, while they wait, and in the middle of their answers."""
    address = urlsplit(tiny.base_url)

    def leave(number: int) -> None:
        rules = {"max_new_tokens": 2000, "ignore_eos": True, "regular_constraint": f"[a-z ]{{{number % 7},}}{number}?"}
        data = json.dumps({"inputs": "Hi", "parameters": rules | {"n": 1 + number % 2}}).encode()
        with socket.create_connection((address.hostname, address.port), timeout=30) as client:
            client.sendall(
                b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data) + data
            )
            time.sleep(random.random() / 20)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, range(1000)))
    until_idle(tiny, 60)
    until_closed(tiny)
    found = post(tiny, "/generate", {"inputs": "Hi", "parameters": {"regular_constraint": "ab", "max_new_tokens": 9}})
    assert found["generated_text"] == ["ab"]
    until_closed(tiny)
