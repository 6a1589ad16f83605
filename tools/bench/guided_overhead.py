"""Measures the cost of constraints: the gap between two tokens of streams with and without a constraint.

    python -m tools.bench.guided_overhead [--rows 16] [--tokens 100] [--rounds 5] [--run-ahead 0|1]
                                          [--model FOLDER] [--load-format dummy]

Starts a server. Rounds alternate between free answers, answers under a regex that allows nearly everything, and answers
under a JSON schema of long strings, all of the same length. Prints for each the median gap, a round's time over its
tokens, and the ratios to the free answers of the neighbouring round.
"""

from __future__ import annotations

import json
import statistics
import sys
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from lightllm_mp import Config, Server, launch
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig
from tools.harness.command_line import ToolParser
from tools.harness.figures import Figures

STRINGS = {"type": "array", "items": {"type": "string", "minLength": 60, "maxLength": 90}, "minItems": 50}
KINDS: dict[str, dict[str, Any]] = {
    "free": {},
    "regex": {"regular_constraint": r"[^\x00-\x08]*"},
    "JSON schema": {"guided_json": STRINGS},
}


def gaps(server: Server, number: int, tokens: int, constraint: dict[str, Any]) -> list[float]:
    """Seconds between the events of one stream, without the first gap."""
    rules = {"max_new_tokens": tokens, "ignore_eos": True, "do_sample": True, "seed": number, "temperature": 0.7}
    body = {"inputs": f"Write {number} sentences about the sea.", "parameters": rules | constraint}
    request = urllib.request.Request(f"{server.base_url}/generate_stream", json.dumps(body).encode())
    found: list[float] = []
    with urllib.request.urlopen(request, timeout=600) as reply:
        last = 0.0
        for line in reply:
            if line.startswith(b"data:"):
                now = perf_counter()
                found.append(now - last)
                last = now
    return found[2:]


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, rows=2, tokens=8, rounds=1)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run-ahead", type=int, default=-1)
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--model", help="default: the default model")
    flags = parser.parse(argv)
    config = Config(
        model=ModelConfig(model_dir=flags.model, load_format=flags.load_format),
        engine=EngineConfig(max_total_token_num=(flags.tokens + 100) * flags.rows + 4000, run_ahead=flags.run_ahead),
        http=HttpConfig(port=0, disable_access_log=True),
    )
    gap: dict[str, list[float]] = {kind: [] for kind in KINDS}
    whole: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with launch(config) as server, ThreadPoolExecutor(flags.rows) as pool:
        server.wait_ready(300)
        for turn in range(flags.rounds + 1):
            for kind, constraint in KINDS.items():
                begin = perf_counter()
                asked = [pool.submit(gaps, server, number, flags.tokens, constraint) for number in range(flags.rows)]
                found = [gap for one in asked for gap in one.result()]
                if turn or flags.rounds == 1:
                    gap[kind].append(statistics.median(found))
                    whole[kind].append((perf_counter() - begin) / flags.tokens)
    figures = Figures()
    for what, seconds in (("median gap", gap), ("time over tokens", whole)):
        for kind, values in seconds.items():
            figures.add(f"{flags.rows} rows, {kind}: {what}", statistics.median(values) * 1e3, "ms")
            ratios = [value / free for value, free in zip(values, seconds["free"], strict=True)]
            figures.add(f"{flags.rows} rows, {kind}: {what}, to free answers", statistics.median(ratios))
    figures.table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
