"""Figures from hand-made outcomes."""

from __future__ import annotations

from array import array

import pytest

from lightllm_mp.cli.bench.client import RequestOutcome
from lightllm_mp.cli.bench.report import percentile, summarize, table


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(v) for v in range(1, 101)]
    assert [percentile(values, q) for q in (50, 90, 99)] == [50.0, 90.0, 99.0]
    assert percentile([7.0], 99) == 7.0
    assert percentile([1.0, 2.0], 50) == 1.0


def test_figures() -> None:
    first = RequestOutcome(10.0, 12.0, array("d", [10.5, 11.0, 12.0]), input_tokens=6, output_tokens=3)
    second = RequestOutcome(11.0, 14.0, array("d", [12.5, 14.0]), input_tokens=4, output_tokens=2)
    lost = RequestOutcome(10.0, 12.0, input_tokens=9, error="HTTP 429: overloaded")
    figures = summarize([first, second, lost])
    assert (figures["requests"], figures["failed"], figures["seconds"]) == (3, 1, 4.0)
    assert (figures["requests_per_s"], figures["input_tokens_per_s"], figures["output_tokens_per_s"]) == (
        0.5,
        2.5,
        1.25,
    )
    assert figures["ttft_s"] == pytest.approx({"mean": 1.0, "p50": 0.5, "p90": 1.5, "p99": 1.5})
    assert figures["inter_token_s"] == pytest.approx({"mean": 1.0, "p50": 1.0, "p90": 1.5, "p99": 1.5})
    assert figures["e2e_s"] == pytest.approx({"mean": 2.5, "p50": 2.0, "p90": 3.0, "p99": 3.0})
    assert figures["errors"] == {"HTTP 429: overloaded": 1}
    text = table(figures)
    assert "first token        1,000.0     500.0   1,500.0   1,500.0" in text
    assert "1 x HTTP 429: overloaded" in text


def test_without_a_success_there_are_no_latencies() -> None:
    figures = summarize([RequestOutcome(0.0, 1.0, error="timeout")])
    assert "ttft_s" not in figures
    assert figures["output_tokens_per_s"] == 0.0
    assert "latency" not in table(figures)


def test_without_a_stream_only_whole_answers_are_timed() -> None:
    figures = summarize([RequestOutcome(0.0, 1.0, output_tokens=5)])
    assert "ttft_s" not in figures
    assert figures["e2e_s"]["p50"] == 1.0
