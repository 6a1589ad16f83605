"""Summarizes the results of a run: a dict of numbers, and a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

from lightllm_mp.cli.bench import stages
from lightllm_mp.cli.bench.client import RequestOutcome

QUANTILES = (50, 90, 99)
LATENCIES = {"ttft_s": "first token", "inter_token_s": "between tokens", "e2e_s": "whole answer"}


def summarize(outcomes: Sequence[RequestOutcome]) -> dict[str, Any]:
    """Times are seconds, rates are per second. Throughput and latencies count successful requests only.

    The time of the run goes from the first start to the last end. Latencies without a value (no stream) are left out.
    """
    good = [outcome for outcome in outcomes if outcome.error is None]
    span = max(o.end for o in outcomes) - min(o.start for o in outcomes) if outcomes else 0.0
    tokens_in, tokens_out = sum(o.input_tokens for o in good), sum(o.output_tokens for o in good)
    figures: dict[str, Any] = {
        "requests": len(outcomes),
        "failed": len(outcomes) - len(good),
        "seconds": round(span, 4),
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "requests_per_s": _rate(len(good), span),
        "input_tokens_per_s": _rate(tokens_in, span),
        "output_tokens_per_s": _rate(tokens_out, span),
    }
    for name, values in _latencies(good).items():
        if values:
            figures[name] = _spread(values)
    figures["errors"] = dict(Counter(o.error for o in outcomes if o.error is not None).most_common())
    return figures


def _latencies(good: list[RequestOutcome]) -> dict[str, list[float]]:
    return {
        "ttft_s": [o.arrivals[0] - o.start for o in good if o.arrivals],
        "inter_token_s": list(chain.from_iterable((b - a for a, b in pairwise(o.arrivals)) for o in good)),
        "e2e_s": [o.end - o.start for o in good],
    }


def _spread(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    figures = {"mean": round(sum(values) / len(values), 6)}
    return figures | {f"p{q}": round(percentile(values, q), 6) for q in QUANTILES}


def percentile(ordered: Sequence[float], q: float) -> float:
    """The q-th percentile by nearest rank: the smallest value that at least q % of all values do not exceed."""
    return ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)]


def _rate(count: int, span: float) -> float:
    return round(count / span, 3) if span > 0 else 0.0


def table(figures: dict[str, Any]) -> str:
    """The figures as a table; latencies are in milliseconds."""
    lines = [
        f"{figures['requests']} requests in {figures['seconds']:.2f} s, {figures['failed']} failed",
        f"{figures['input_tokens']:,} input tokens, {figures['output_tokens']:,} output tokens",
        "",
        f"{'throughput':<16}{figures['requests_per_s']:>10,.2f} requests/s",
        f"{'':<16}{figures['input_tokens_per_s']:>10,.1f} input tokens/s",
        f"{'':<16}{figures['output_tokens_per_s']:>10,.1f} output tokens/s",
    ]
    columns = ("mean", *(f"p{q}" for q in QUANTILES))
    measured = {label: figures[name] for name, label in LATENCIES.items() if name in figures}
    if measured:
        lines += ["", f"{'latency (ms)':<16}" + "".join(f"{column:>10}" for column in columns)]
    for label, spread in measured.items():
        lines.append(f"{label:<16}" + "".join(f"{spread[column] * 1000:>10,.1f}" for column in columns))
    if "images" in figures:
        lines += ["", *stages.lines(figures["images"])]
    if figures["errors"]:
        lines += ["", "failures", *(f"{count:>8} x {error}" for error, count in figures["errors"].items())]
    return "\n".join(lines)
