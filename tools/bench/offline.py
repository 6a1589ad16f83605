"""The served workload without server: scheduler and executor in one process, one step planned ahead.

    python -m tools.bench.offline [--num-requests 2000] --model-dir DIR [--load-format dummy] [...]

More flags are those of `lightllm-mp serve`. What `lightllm-mp bench` reaches over HTTP should be within a few percent.
Prints one JSON line a figure: requests a second, and by kind of step how many there were, how long they took from
answer to answer, and what they computed.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from lightllm_mp.cli.bench.workload import make
from lightllm_mp.cli.flags import resolve
from lightllm_mp.engine.build import BuiltEngine, build_engine
from lightllm_mp.messages import Sampling, Terms, Tokenized
from lightllm_mp.model_description import describe
from lightllm_mp.model_files.default_model import find_default_model
from lightllm_mp.model_files.model_source import ModelSource
from lightllm_mp.plan import unpack
from lightllm_mp.scheduler.scheduler import Scheduler
from tools.harness.command_line import ToolParser
from tools.harness.figures import Figures
from tools.harness.models import GOLDENS


def requests(count: int, lengths: str, vocab: int) -> list[Tokenized]:
    return [
        Tokenized(
            rid=i,
            terms=Terms(Sampling(seed=i, max_new_tokens=one.output_len, ignore_eos=True)),
            ids=np.array(one.prompt, "<i4").tobytes(),
            prompt_tokens=one.input_len,
        )
        for i, one in enumerate(make(count, lengths, lengths, vocab=vocab))
    ]


def kind(plan: bytes) -> tuple[str, int, int]:
    """(kind of step, prompt tokens, sequences with one token)"""
    counts = unpack(bytearray(plan)).seqs[:, 2]
    single = int((counts == 1).sum())
    prompt = int(counts.sum()) - single
    return ("decode" if not prompt else "mixed" if single else "prefill"), prompt, single


def serve(figures: Figures, engine: BuiltEngine, todo: list[Tokenized], rate: float) -> None:
    """All requests, at `rate` a second; 0: all at once."""
    executor, ahead = engine.executor, engine.facts.engine.run_ahead + 1
    scheduler = Scheduler(replace(engine.facts.engine, eos_ids=engine.facts.eos_ids, prompt_cache=False))
    sent, plans = 0, list[bytes]()
    spent: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
    start = last = time.perf_counter()
    while sent < len(todo) or scheduler.has_work:
        now = time.perf_counter() - start
        while sent < len(todo) and (not rate or sent / rate <= now):
            scheduler.add(todo[sent])
            sent += 1
        while len(plans) < ahead and (plan := scheduler.plan()) is not None:
            executor.submit(plan)
            plans.append(plan)
        scheduler.take_events()
        if not plans:
            continue
        scheduler.done(executor.collect())
        now = time.perf_counter()
        what, prompt, single = kind(plans.pop(0))
        spent[what].append((now - last, prompt, single))
        last = now
    figures.add("throughput", len(todo) / (last - start), "requests/s")
    figures.add("whole run", last - start, "s")
    for what, steps in sorted(spent.items()):
        seconds, prompt, single = (sum(column) for column in zip(*steps, strict=True))
        figures.add(f"{what} steps", len(steps), "steps")
        figures.add(f"{what} steps: together", seconds, "s")
        figures.add(f"{what} steps: median", statistics.median(step[0] for step in steps) * 1e3, "ms")
        figures.add(f"{what} steps: decode tokens a step", single / len(steps), "tokens")
        figures.add(f"{what} steps: prompt tokens", prompt, "tokens")
    figures.add("preemptions", scheduler.gauges()["preemptions"], "times")


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, num_requests=8, lengths="uniform:8-32", rate=0.0)
    parser.add_argument("--num-requests", type=int, default=2000)
    parser.add_argument("--lengths", default="sharegpt", help="of prompts and answers, as of `lightllm-mp bench`")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second; 0: all at once")
    flags, engine_flags = parser.parse_some(argv)
    if flags.smoke and not engine_flags:
        engine_flags = ["--model-dir", str(GOLDENS / "llama"), "--max-total-token-num", "2000", "--device", "cpu"]
    config, _ = resolve(["--running-max-req-size", "512", *engine_flags], os.environ)
    path = Path(config.model.model_dir) if config.model.model_dir else find_default_model()
    figures, began = Figures(), time.perf_counter()
    engine = build_engine(describe(ModelSource(path), weights=False, images=False), config.model, config.engine)
    figures.add("start", time.perf_counter() - began, "s")
    figures.add("KV tokens", engine.facts.engine.kv_tokens, "tokens")
    serve(figures, engine, requests(flags.num_requests, flags.lengths, engine.facts.engine.vocab_size), flags.rate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
