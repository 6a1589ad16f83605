"""Runs the served workload without a server: scheduler and executor in one process, one step planned ahead.

    python -m tools.bench.offline [--num-requests 2000] --model-dir DIR [--load-format dummy] [...]

More flags are those of `lightllm-mp serve`. What `lightllm-mp bench` reaches over HTTP should be within a few percent.
Prints one JSON line a figure: requests per second, and by kind of step their number, the time from answer to answer,
and the work; throughput with its share of what this GPU could reach with the same steps. `tools.bench.model` measures
single steps.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from lightllm_mp.plan import SAMPLE, Ints, unpack
from lightllm_mp.scheduler.scheduler import Scheduler
from tools.harness.ceilings import ceilings
from tools.harness.command_line import ToolParser
from tools.harness.figures import Figures
from tools.harness.models import GOLDENS
from tools.harness.step_limits import StepLimits, limits_of


def requests(count: int, lengths: str, vocab: int, answers: str = "") -> list[Tokenized]:
    """`answers`: lengths of the answers, if they are not those of the prompts."""
    return [
        Tokenized(
            rid=i,
            terms=Terms(Sampling(seed=i, max_new_tokens=one.output_len, ignore_eos=True)),
            ids=np.array(one.prompt, "<i4").tobytes(),
            prompt_tokens=one.input_len,
        )
        for i, one in enumerate(make(count, lengths, answers or lengths, vocab=vocab))
    ]


@dataclass
class ServedStep:
    """One step of a run."""

    seconds: float
    """Seconds from the previous answer to this one."""
    seqs: Ints
    """`Plan.seqs`"""

    @property
    def single(self) -> int:
        """Sequences with one token."""
        return int((self.seqs[:, 2] == 1).sum())

    @property
    def prompt(self) -> int:
        """Prompt tokens."""
        return int(self.seqs[:, 2].sum()) - self.single

    @property
    def kind(self) -> str:
        return "decode" if not self.prompt else "mixed" if self.single else "prefill"

    def least(self, limits: StepLimits) -> float:
        """Seconds at this GPU's ceilings."""
        new, ends, sampled = self.seqs[:, 2], self.seqs[:, 1] + self.seqs[:, 2], self.seqs[:, 3] & SAMPLE
        return limits.seconds(ceilings(), new.tolist(), ends.tolist(), int(sampled.sum()))


@dataclass
class ServedRun:
    seconds: float
    steps: list[ServedStep]
    preemptions: int

    def least(self, limits: StepLimits) -> float:
        """Seconds that its steps take at this GPU's ceilings."""
        return sum(step.least(limits) for step in self.steps)


def serve(
    engine: BuiltEngine, todo: list[Tokenized], rate: float = 0.0, watch: Callable[[int], None] = lambda step: None
) -> ServedRun:
    """Runs all requests at `rate` per second; 0: all at once. `watch` gets the number of finished steps."""
    executor, ahead = engine.executor, engine.facts.engine.run_ahead + 1
    scheduler = Scheduler(replace(engine.facts.engine, eos_ids=engine.facts.eos_ids, prompt_cache=False))
    sent, plans, done = 0, list[bytes](), list[tuple[float, bytes]]()
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
        done.append((now - last, plans.pop(0)))
        last = now
        watch(len(done))
    steps = [ServedStep(seconds, unpack(bytearray(plan)).seqs) for seconds, plan in done]
    return ServedRun(last - start, steps, int(scheduler.gauges()["preemptions"]))


def report(figures: Figures, run: ServedRun, count: int, limits: StepLimits, name: str = "") -> None:
    """Prints the figures of `count` served requests."""
    rate = count / run.seconds
    figures.add_limited(f"{name}throughput", rate, "requests/s", count / run.least(limits))
    figures.add(f"{name}whole run", run.seconds, "s")
    for what in sorted({step.kind for step in run.steps}):
        steps = [step for step in run.steps if step.kind == what]
        figures.add(f"{name}{what} steps", len(steps), "steps")
        figures.add(f"{name}{what} steps: together", sum(step.seconds for step in steps), "s")
        figures.add(f"{name}{what} steps: median", statistics.median(step.seconds for step in steps) * 1e3, "ms")
        figures.add(f"{name}{what} steps: decode tokens a step", statistics.mean(s.single for s in steps), "tokens")
        figures.add(f"{name}{what} steps: prompt tokens", sum(step.prompt for step in steps), "tokens")
    figures.add(f"{name}preemptions", run.preemptions, "times")


def built(path: Path, arguments: Sequence[str], figures: Figures) -> tuple[BuiltEngine, StepLimits]:
    """An engine with flags of `lightllm-mp serve`, and the costs of its steps. Raises ConfigError or ModelError."""
    config, _ = resolve(["--running-max-req-size", "512", "--model-dir", str(path), *arguments], os.environ)
    source, began = ModelSource(path), time.perf_counter()
    engine = build_engine(describe(source, weights=False, images=False), config.model, config.engine)
    figures.add("start", time.perf_counter() - began, "s")
    figures.add("weights", engine.facts.weight_bytes / 1e9, "GB")
    figures.add("KV tokens", engine.facts.engine.kv_tokens, "tokens")
    stored = engine.executor.kv.data.dtype.itemsize
    return engine, limits_of(source, quantization=config.model.quantization, kv_itemsize=stored)


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, num_requests=8, lengths="uniform:8-32", rate=0.0)
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--num-requests", type=int, default=2000)
    parser.add_argument("--lengths", default="sharegpt", help="of prompts and answers, as of `lightllm-mp bench`")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second; 0: all at once")
    flags, engine_flags = parser.parse_some(argv)
    if flags.smoke and not flags.model_dir:
        flags.model_dir, engine_flags = GOLDENS / "llama", ["--max-total-token-num", "2000", "--device", "cpu"]
    figures = Figures()
    engine, limits = built(flags.model_dir or find_default_model(), engine_flags, figures)
    todo = requests(flags.num_requests, flags.lengths, engine.facts.engine.vocab_size)
    report(figures, serve(engine, todo, flags.rate), len(todo), limits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
