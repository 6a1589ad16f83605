"""The model that was started answers the command in the start-up block."""

from __future__ import annotations

import asyncio
import shlex
from array import array

import pytest

from lightllm_mp.actors.http import schema
from lightllm_mp.actors.supervision.console import CLEAR, Console, example
from lightllm_mp.config import HttpConfig
from lightllm_mp.facts import EngineLimits, Facts, PooledFacts
from lightllm_mp.messages import Loading

URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize("has_tokenizer", [True, False])
@pytest.mark.parametrize("reward", [True, False])
def test_example(has_tokenizer: bool, reward: bool) -> None:
    program, url, option, body = shlex.split(
        example(
            URL,
            Facts(has_tokenizer=has_tokenizer, engine=EngineLimits(pooled=PooledFacts("score", 1) if reward else None)),
        )
    )
    assert (program, option) == ("curl", "-d")
    if reward:
        score = schema.score_body(body.encode())
        assert url == f"{URL}/get_score"
        prompt = asyncio.run(schema.conversation(score, 0))
        assert prompt == ("What is AI?" if has_tokenizer else array("i", [1, 2, 3]).tobytes())
    else:
        prompt = asyncio.run(schema.prompt(schema.generate_body(body.encode()).inputs, 0))
        assert url == f"{URL}/generate"
        assert isinstance(prompt, str) == has_tokenizer


def test_elsewhere_than_on_a_terminal_a_stage_is_a_line_and_so_is_a_whole_bar(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console()
    for loading in (
        Loading("importing libraries"),
        *(Loading("weights", done << 20, 92 << 20) for done in (1, 50, 92)),
    ):
        console.progress("worker0", loading)
    assert capsys.readouterr().err.splitlines() == [
        "worker0: importing libraries",
        f"worker0: loading weights [{'#' * 30}] 100% of 92 MiB",
    ]


def test_on_a_terminal_they_are_redrawn_in_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    console = Console()
    for loading in (Loading("importing libraries"), Loading("weights", 46 << 20, 92 << 20), Loading("first steps")):
        console.progress("worker0", loading)
    drawn = capsys.readouterr().err
    assert drawn.count("\n") == 0
    assert drawn.split(CLEAR)[1:] == [
        "worker0: importing libraries ...",
        f"worker0: loading weights [{'#' * 15}{'.' * 15}]  50% of 92 MiB",
        "worker0: first steps ...",
    ]


def test_as_json_a_stage_is_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(
        "lightllm_mp.actors.supervision.console.log.info", lambda text, *values: told.append(text % values)
    )
    Console(json=True).progress("worker0", Loading("importing libraries"))
    assert told == ["worker0: importing libraries"]


@pytest.mark.parametrize(
    ("port", "facts", "no_ui", "last"),
    [
        (8000, Facts(has_tokenizer=True), False, "Open {url}/ in a browser, or chat here: lightllm-mp chat"),
        (81, Facts(has_tokenizer=True), False, "Open {url}/ in a browser, or chat here: lightllm-mp chat --url {url}"),
        (81, Facts(has_tokenizer=True), True, None),
        (81, Facts(has_tokenizer=False), False, None),
        (81, Facts(has_tokenizer=True, engine=EngineLimits(pooled=PooledFacts("embed", 8))), False, None),
    ],
)
def test_the_block_ends_with_the_page_where_there_is_one_to_chat_with(
    capsys: pytest.CaptureFixture[str], port: int, facts: Facts, no_ui: bool, last: str | None
) -> None:
    url = f"http://127.0.0.1:{port}"
    Console().serving(url, facts, HttpConfig(port=port, no_ui=no_ui), 6, keys=False)
    lines = capsys.readouterr().err.rstrip().splitlines()
    assert lines[-1].startswith("  try ") if last is None else lines[-1] == last.format(url=url)


def test_the_block_tells_of_slots_of_windows(capsys: pytest.CaptureFixture[str]) -> None:
    for near, told in ((0, "12,000"), (3456, "12,000, and 3,456 in layers with a sliding window")):
        facts = Facts(engine=EngineLimits(kv_tokens=12000, window_tokens=near))
        Console().serving("http://127.0.0.1:1", facts, HttpConfig(), 6, keys=False)
        assert f"  KV tokens  {told}" in capsys.readouterr().err.splitlines()
