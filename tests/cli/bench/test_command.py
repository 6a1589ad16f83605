"""The command against a fake server: what is sent, what is measured, what a failure does."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from lightllm_mp.cli import main

from .fake_server import FakeServer

SMALL = ["--num-requests", "6", "--input-len", "uniform:2-5", "--output-len", "4", "--warmup", "0"]


def bench(capsys: pytest.CaptureFixture[str], url: str, *words: str) -> tuple[int, dict[str, Any]]:
    code = main.main(["bench", "--url", url, "--json", *SMALL, *words])
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
        assert main.main(["bench", "--url", server.url, *SMALL, "--api_key_file", str(tmp_path / "key")]) == 0
    text = capsys.readouterr().out
    assert "6 requests in" in text
    assert "between tokens" in text
    assert all(headers["Authorization"] == "Bearer abc" for headers in server.headers)


def metrics(factor: int) -> str:
    """Of a server: everything `factor` times, and what has no label or several of them."""
    numbers = {
        "image_cache_hits_total": 3,
        "image_cache_joins_total": 1,
        "image_cache_misses_total": 8,
        "image_cache_evictions_total": 0,
        "image_batches_total": 4,
        "images_encoded_total": 8,
        "image_encode_seconds_total": 0.8,
        "images_decoded_total": 8,
        "image_decode_seconds_total": 0.16,
        "image_requests_embedded_total": 6,
        "image_wait_seconds_total": 1.5,
        "image_fetch_time_seconds_count": 0,
        "image_fetch_time_seconds_sum": 0,
        "request_prefill_time_seconds_count": 6,
        "request_prefill_time_seconds_sum": 0.3,
    }
    lines = [f'lightllm_{name}{{model_name="m"}} {value * factor}' for name, value in numbers.items()]
    return "\n".join([*lines, "process_cpu_seconds_total 5", 'lightllm_http_responses_total{status="200"} 3', ""])


def test_images_are_sent_and_the_server_asked(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--images", "2", "--image-size", "40x30", "--image-repeats", "0.4", "--warmup", "1")
    with FakeServer().running() as server:
        server.metrics = [metrics(2), metrics(3)]
        code, figures = bench(capsys, server.url, *words)
    assert code == 0
    media = [body["multimodal_params"]["images"] for body in server.requests]
    assert all(len(images) == 2 and images[0]["type"] == "base64" for images in media)
    assert all(body["inputs"][:2] == [-200, -200] != body["inputs"][2:4] for body in server.requests)
    sent = [image["data"] for images in media[1:] for image in images]
    images = figures["images"]
    assert (images["sent"], images["distinct"]) == (12, len(set(sent)))
    assert images["distinct"] < 12
    assert media[0][0]["data"] not in sent  # the warm-up has pictures of its own
    assert [images[name] for name in ("hits", "joins", "misses", "evictions")] == [3, 1, 8, 0]
    assert images["images_per_batch"] == 2.0
    assert images["stages"] == {
        "decode": {"count": 8, "mean_s": 0.02},
        "encode": {"count": 8, "mean_s": 0.1},
        "wait": {"count": 6, "mean_s": 0.25},
        "prefill": {"count": 6, "mean_s": 0.05},
    }


def test_images_by_url_and_a_server_without_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer().running() as server:
        words = ["--images", "1", "--image-size", "40", "--image-from", "url", "--prompt", "text"]
        code, figures = bench(capsys, server.url, *words, "--image-tag", "<img></img>")
    assert code == 0
    assert figures["images"] == {"sent": 6, "distinct": 6}
    assert all(body["inputs"].startswith("<img></img>") for body in server.requests)
    assert len({data for data in server.fetched if data.startswith(b"\xff\xd8")}) == 6


def test_the_table_of_images(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer().running() as server:
        server.metrics = [metrics(1), metrics(2)]
        assert main.main(["bench", "--url", server.url, *SMALL, "--images", "1", "--image-size", "20"]) == 0
    text = capsys.readouterr().out
    assert "6 images sent, 6 of them different" in text
    assert "image cache     3 hits, 1 joins, 8 misses, 0 evictions" in text
    assert "batches         2.0 images on average" in text
    assert "encode               100.0         8" in text
    assert "fetch" not in text


def test_without_images_nobody_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer().running() as server:
        server.metrics = [metrics(1)]
        _, figures = bench(capsys, server.url)
    assert "images" not in figures
    assert len(server.metrics) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--image-repeats", "2"], "expected a number from 0 to 1"),
        (["--image-size", "3x"], "expected N or WIDTHxHEIGHT"),
        (["--rate", "1", "--concurrency", "2"], "not allowed with"),
        (["--rate", "0"], "expected a number above 0"),
        (["--num-requests", "0"], "at least 1"),
        (["--num-requests", "x"], "invalid whole number value: 'x'"),
        (["--input-len", "many"], "expected N, uniform:a-b or sharegpt"),
        (["--concurency", "2"], "did you mean --concurrency?"),
        (["--url", "localhost:8000"], "expected http://HOST:PORT"),
        (["--api-key-file", "/nonexistent"], "no key can be read from this file"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], words: list[str], expected: str) -> None:
    assert main.main(["bench", *words]) == 2
    assert expected in capsys.readouterr().err
