"""The command against a fake server: what is sent, what is measured, what a failure does."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from lightllm_mp import cli

from .fake_server import FakeServer

SMALL = ["--num-requests", "6", "--input-len", "uniform:2-5", "--output-len", "4", "--warmup", "0"]


def bench(capsys: pytest.CaptureFixture[str], url: str, *words: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["bench", "--url", url, "--json", *SMALL, *words])
    return code, json.loads(capsys.readouterr().out)


def test_a_streamed_run_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(delay=0.01).running() as server:
        code, figures = bench(capsys, server.url, "--concurrency", "3", "--ignore-eos")
    assert code == 0
    assert (figures["requests"], figures["failed"], figures["output_tokens"]) == (6, 0, 24)
    assert figures["input_tokens"] == sum(len(body["inputs"]) for body in server.requests)
    assert server.most == 3
    assert all(body["parameters"]["ignore_eos"] for body in server.requests)
    assert 0.01 <= figures["ttft_s"]["p50"] < figures["e2e_s"]["p50"]
    assert 0.009 <= figures["inter_token_s"]["p50"] < 1
    assert figures["e2e_s"]["p50"] >= 0.04


def test_runs_are_repeatable_and_warmup_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(delay=0).running() as server:
        code, figures = bench(capsys, server.url, "--concurrency", "1", "--warmup", "2")
        first = server.requests.copy()
        bench(capsys, server.url, "--concurrency", "1", "--warmup", "2")
    assert (code, figures["requests"]) == (0, 6)
    assert len(first) == 8
    assert server.requests[8:] == first


def test_an_open_loop_sends_at_its_rate(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(delay=0.05).running() as server:
        code, figures = bench(capsys, server.url, "--rate", "inf")
        assert server.most == 6
        assert figures["settings"]["rate"] == "inf"
        code, figures = bench(capsys, server.url, "--rate", "50")
    assert code == 0
    assert "concurrency" not in figures["settings"]
    assert figures["requests_per_s"] < 50


def test_whole_answers_and_texts(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer().running() as server:
        code, figures = bench(capsys, server.url, "--no-stream", "--prompt", "text")
    assert code == 0
    assert (figures["output_tokens"], figures["input_tokens"]) == (24, 18)
    assert "ttft_s" not in figures
    assert all(isinstance(body["inputs"], str) for body in server.requests)


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        ("overloaded", "HTTP 429: overloaded"),
        ("error", "error: broken"),
        ("cut", "the stream ended early"),
    ],
)
def test_failures_are_counted_and_end_with_one(capsys: pytest.CaptureFixture[str], fail: str, expected: str) -> None:
    with FakeServer(fail=fail).running() as server:
        code, figures = bench(capsys, server.url)
    assert code == 1
    assert (figures["failed"], figures["errors"]) == (6, {expected: 6})


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        code, figures = bench(capsys, f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert code == 1
    assert figures["errors"] == {"ClientConnectorError": 6}


def test_a_server_that_hangs_is_a_timeout(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(delay=30).running() as server:
        code, figures = bench(capsys, server.url, "--timeout", "0.2", "--num-requests", "2")
    assert (code, figures["errors"]) == (1, {"timeout": 2})


def test_the_table_and_the_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("abc\nsecond\n")
    with FakeServer().running() as server:
        assert cli.main(["bench", "--url", server.url, *SMALL, "--api_key_file", str(tmp_path / "key")]) == 0
    text = capsys.readouterr().out
    assert "6 requests in" in text
    assert "between tokens" in text
    assert all(headers["Authorization"] == "Bearer abc" for headers in server.headers)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--rate", "1", "--concurrency", "2"], "not allowed with"),
        (["--rate", "0"], "expected a number above 0"),
        (["--num-requests", "0"], "at least 1"),
        (["--num-requests", "x"], "invalid whole number value: 'x'"),
        (["--input-len", "many"], "expected N, uniform:a-b or sharegpt"),
        (["--concurency", "2"], "did you mean --concurrency?"),
        (["--url", "localhost:8000"], "expected http://HOST:PORT"),
        (["--api-key-file", "/nonexistent"], "no key can be read there"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], words: list[str], expected: str) -> None:
    assert cli.main(["bench", *words]) == 2
    assert expected in capsys.readouterr().err
