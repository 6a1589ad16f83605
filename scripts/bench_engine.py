"""The served workload without server: scheduler and executor in one process, one step planned ahead.

    python scripts/bench_engine.py --model-dir DIR [--load-format dummy] [--kv-cache-dtype int8] [--num-requests 2000]

What `lightllm-mp bench` reaches over HTTP should be within a few percent of this. Prints one JSON line a figure:
requests a second, and by kind of step how many there were, how long they took from answer to answer, and what they
computed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from lightllm_mp.cli.bench.workload import make
from lightllm_mp.config import EngineConfig, ModelConfig
from lightllm_mp.engine.build import build_engine
from lightllm_mp.messages import EngineLimits, Sampling, Terms, Tokenized
from lightllm_mp.plan import unpack
from lightllm_mp.scheduler.scheduler import Scheduler


def requests(count: int, vocab: int) -> list[Tokenized]:
    return [
        Tokenized(
            rid=i,
            terms=Terms(Sampling(seed=i, max_new_tokens=one.output_len, ignore_eos=True)),
            ids=np.array(one.prompt, "<i4").tobytes(),
            prompt_tokens=one.input_len,
        )
        for i, one in enumerate(make(count, "sharegpt", "sharegpt", vocab=vocab))
    ]


def figure(name: str, value: float, unit: str) -> None:
    print(json.dumps({"figure": name, "value": round(value, 3), "unit": unit}), flush=True)


def kind(plan: bytes) -> tuple[str, int, int]:
    """(kind of step, prompt tokens, sequences with one token)"""
    counts = unpack(bytearray(plan)).seqs[:, 2]
    single = int((counts == 1).sum())
    prompt = int(counts.sum()) - single
    return ("decode" if not prompt else "mixed" if single else "prefill"), prompt, single


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--load-format", default="auto", choices=("auto", "dummy"))
    parser.add_argument("--kv-cache-dtype", default="auto", choices=("auto", "int8", "fp8"))
    parser.add_argument("--num-requests", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second; 0: all at once")
    parser.add_argument("--running-max-req-size", type=int, default=512)
    parser.add_argument("--batch-max-tokens", type=int)
    options = parser.parse_args()
    began = time.perf_counter()
    engine = build_engine(
        options.model_dir,
        ModelConfig(load_format=options.load_format),
        EngineConfig(
            running_max_req_size=options.running_max_req_size,
            batch_max_tokens=options.batch_max_tokens,
            kv_cache_dtype=options.kv_cache_dtype,
        ),
    )
    figure("start", time.perf_counter() - began, "s")
    figure("KV tokens", engine.facts.engine.kv_tokens, "tokens")
    executor, ahead = engine.executor, engine.facts.engine.run_ahead + 1
    scheduler = Scheduler(EngineLimits.of(engine.facts, prompt_cache=False))
    todo, sent, plans = requests(options.num_requests, engine.facts.engine.vocab_size), 0, list[bytes]()
    spent: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
    start = last = time.perf_counter()
    while sent < len(todo) or scheduler.has_work:
        now = time.perf_counter() - start
        while sent < len(todo) and (not options.rate or sent / options.rate <= now):
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
    whole = last - start
    figure("throughput", len(todo) / whole, "requests/s")
    figure("whole run", whole, "s")
    for what, steps in sorted(spent.items()):
        seconds, prompt, single = (sum(column) for column in zip(*steps, strict=True))
        figure(f"{what} steps", len(steps), "steps")
        figure(f"{what} steps: together", seconds, "s")
        figure(f"{what} steps: median", statistics.median(step[0] for step in steps) * 1e3, "ms")
        figure(f"{what} steps: decode tokens a step", single / len(steps), "tokens")
        figure(f"{what} steps: prompt tokens", prompt, "tokens")
    figure("preemptions", scheduler.gauges()["preemptions"], "times")


if __name__ == "__main__":
    main()
