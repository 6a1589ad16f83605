"""Measures steps of a Llama with random weights on one GPU: the forward pass alone, and steps of the executor.

    python -m tools.bench.steps [--model llama2-7b llama3-8b] [--parts decode,prefill] [--json FILE]
    python -m tools.bench.steps --parts executor --model llama2-7b --batch 1 16 64 --context 1024

decode: forward pass, logits and argmax, eager and as a CUDA graph; prefill: whole prompts. Limits: bytes and operations
over what this GPU reaches (tools/harness/ceilings.py).

executor: where the time of a decode step goes. Rows are given random ids and slots, so no prefill is needed; then steps
are planned, submitted one ahead of the answer and collected as in the worker. Prints a table of kernels, the time of a
submit, and the time in which the device idles.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from lightllm_mp.engine.executor import Executor
from lightllm_mp.kernels.triton import launch
from lightllm_mp.messages import Sampling
from lightllm_mp.models.decoder.decoder import Decoder
from lightllm_mp.models.families.llama import LLAMA
from lightllm_mp.models.spec import ModelSpec
from lightllm_mp.plan import PlanBuilder
from tools.harness.ceilings import ceilings
from tools.harness.command_line import ToolParser, words
from tools.harness.figures import Figures
from tools.harness.gpu import (
    MODELS,
    SPECS,
    captured,
    device_facts,
    new_step,
    random_decoder,
    random_pool,
    random_step,
    require_gpus,
    seconds,
)
from tools.harness.step_limits import StepLimits

PARTS = ("decode", "prefill", "executor")
DECODE_STEPS = {
    "llama2-7b": [(1, 1088), (16, 1088), (64, 1088), (256, 371)],
    "llama3-8b": [(1, 1088), (16, 1088), (64, 1088), (256, 1088)],
    "two-layers": [(4, 64)],
}
"""(sequences, context)"""
PREFILL_STEPS = {
    "llama2-7b": [(16, 2048), (1, 512)],
    "llama3-8b": [(16, 2048), (1, 512)],
    "two-layers": [(2, 64)],
}
"""(sequences, length)"""
STEP_TOKENS = 16384
MIXED_STEP = (64, 1088, 512)
"""(decoding sequences, their context, new tokens of one prompt in the same step)"""


def step_of(decoder: Decoder, new: list[int], contexts: list[int]) -> Callable[[], torch.Tensor]:
    """Forward pass, logits of each sequence's last token and the most likely id, on its own memory."""
    pool, batch, prompts = random_pool(decoder.spec, sum(contexts)), random_step(new, contexts), max(new) > 1
    ids = torch.randint(decoder.spec.vocab, (batch.tokens,), device="cuda", dtype=torch.int32)
    return lambda: decoder.logits(decoder.forward(ids, new_step(batch), pool, ends_only=prompts)).argmax(-1)


def limits(spec: ModelSpec) -> StepLimits:
    """In bfloat16."""
    return StepLimits.of(spec, LLAMA.hf_weights(spec), {})


def decode(figures: Figures, name: str, decoder: Decoder) -> None:
    for sequences, context in DECODE_STEPS[name]:
        sizes = [1] * sequences, [context] * sequences
        step, title = step_of(decoder, *sizes), f"{sequences} x {context}"
        limit = limits(decoder.spec).seconds(ceilings(), *sizes) * 1e3
        figures.add_limited(f"{name} decode step {title} eager", seconds(step) * 1e3, "ms", limit, less_is_better=True)
        took = seconds(captured(step).replay) * 1e3
        figures.add_limited(f"{name} decode step {title} graph", took, "ms", limit, less_is_better=True)
        del step
    if name in MODELS:
        sequences, context, new = MIXED_STEP
        step = step_of(decoder, [1] * sequences + [new], [context] * sequences + [new])
        figures.add(f"{name} mixed step {sequences} x {context} and {new} new", seconds(step) * 1e3, "ms")


def prefill(figures: Figures, name: str, decoder: Decoder) -> None:
    """Prefills whole prompts in steps of STEP_TOKENS."""
    for sequences, length in PREFILL_STEPS[name]:
        each = min(sequences, STEP_TOKENS // length)
        prompts = [length] * each
        least = limits(decoder.spec).seconds(ceilings(), prompts, prompts)
        step, limit = step_of(decoder, prompts, prompts), each * length / least
        rate = each * length / seconds(step, repeats=10)
        figures.add_limited(f"{name} prefill {sequences} x {length}", rate, "tokens/s", limit)
        del step


class SteadyDecode:
    """`batch` rows of `context` tokens that decode without end, greedily or with the given sampling, and in each step a
    new prompt of `chunk` tokens."""

    def __init__(self, executor: Executor, batch: int, context: int, sampling: Sampling, chunk: int = 0) -> None:
        self.executor, self.batch, self.chunk, self.sampling = executor, batch, chunk, sampling
        self.host: list[float] = []
        """Seconds of each submit."""
        self.rows = np.arange(batch)
        self.end = np.full(batch, context)
        self.step, self.next_slot = 0, batch * context
        builder, vocab = PlanBuilder(0), executor.model.spec.vocab
        slots = np.random.default_rng(0).permutation(batch * context).astype(np.int32)
        for row in range(batch):
            builder.setup(row, context, sampling)
            builder.write_ids(row, 0, np.random.default_rng(row).integers(3, vocab, context + 1).astype(np.int32))
            builder.write_slots(row, 0, slots[row * context : (row + 1) * context])
        self.executor.submit(builder.pack())
        self.executor.collect()

    def submit(self) -> None:
        self.step += 1
        builder = PlanBuilder(self.step)
        fresh = np.arange(self.next_slot, self.next_slot + self.batch, dtype=np.int32)
        self.next_slot += self.batch
        builder.write_slot_each(self.rows, self.end, fresh)
        builder.add_each(self.rows, self.end)
        if self.chunk:
            builder.setup(self.batch, self.chunk, self.sampling)
            builder.write_ids(self.batch, 0, np.arange(3, 3 + self.chunk, dtype=np.int32))
            builder.write_slots(self.batch, 0, np.arange(self.chunk, dtype=np.int32))
            builder.add(self.batch, 0, self.chunk, sample=True)
        self.end = self.end + 1
        plan, began = builder.pack(), time.perf_counter()
        self.executor.submit(plan)
        self.host.append(time.perf_counter() - began)

    def run(self, steps: int) -> list[float]:
        """Seconds between answers, with one step planned ahead."""
        marks = []
        self.submit()
        for _ in range(steps):
            self.submit()
            self.executor.collect()
            marks.append(time.perf_counter())
        self.executor.collect()
        return np.diff(marks).tolist()


def through_executor(figures: Figures, name: str, decoder: Decoder, flags: argparse.Namespace) -> None:
    most, longest = max(flags.batch), flags.context + 4 * flags.steps + 8
    executor = Executor(
        decoder, kv_tokens=most * longest, rows=most + 1, max_context=longest, step_tokens=8192, device="cuda"
    )
    began = time.perf_counter()
    executor.warm_up()
    figures.add("warm-up", time.perf_counter() - began, "s")
    sampling = Sampling(seed=1, temperature=flags.temperature)
    for batch in flags.batch:
        executor.reset()
        steady = SteadyDecode(executor, batch, flags.context, sampling, flags.chunk)
        steady.run(flags.steps)
        step = statistics.median(steady.run(flags.steps))
        events = kernels(steady, flags.steps)
        if not flags.no_table:
            table(events, flags.steps + 1)
        idle, before = gaps(events)
        title = f"{name} decode {batch} x {flags.context}" + f" + {flags.chunk}" * bool(flags.chunk)
        figures.add(f"{title}: step", step * 1e3, "ms")
        figures.add(f"{title}: host, submitting", statistics.median(steady.host) * 1e3, "ms")
        figures.add(f"{title}: device idle", idle, "of the time")
        figures.add(f"{title}: gap before a step", before / (step * 1e6), "of the step")


def kernels(steady: SteadyDecode, steps: int) -> list[Any]:
    """Kernels that ran on the device, in order of their start."""
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        steady.run(steps)
        torch.cuda.synchronize()
    events = [e for e in record.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return sorted(events, key=lambda e: e.time_range.start)


def table(events: list[Any], steps: int) -> None:
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        times[event.name[:72]].append(event.time_range.end - event.time_range.start)
    whole = sum(map(sum, times.values()))
    print(f"{'kernel':72} {'a step':>7} {'us each':>9} {'us a step':>10} {'share':>6}")
    for name, spent in sorted(times.items(), key=lambda item: -sum(item[1])):
        each, total = statistics.median(spent), sum(spent)
        print(f"{name:72} {len(spent) / steps:7.1f} {each:9.2f} {total / steps:10.1f} {total / whole:6.1%}")


def gaps(events: list[Any]) -> tuple[float, float]:
    """(share of time without a running kernel, median microseconds before a step's first work, the copy of its plan)"""
    idle, before, end = 0.0, [], events[0].time_range.end
    for event in events[1:]:
        gap = max(0.0, event.time_range.start - end)
        idle += gap
        if "HtoD" in event.name:
            before.append(gap)
        end = max(end, event.time_range.end)
    return idle / (end - events[0].time_range.start), statistics.median(before) if before else float("nan")


def main(argv: Sequence[str] | None = None) -> int:
    smoke = {"model": ["two-layers"], "parts": PARTS, "batch": [4], "context": 64, "steps": 3}
    parser = ToolParser(__doc__, **smoke)
    parser.add_argument("--model", choices=SPECS, nargs="+", default=MODELS)
    parser.add_argument("--parts", type=words, default=PARTS[:2], help="some of " + ",".join(PARTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--early", action=argparse.BooleanOptionalAction, default=launch.EARLY_START)
    parser.add_argument("--batch", type=int, nargs="+", default=[64], help="sequences of a step of executor")
    parser.add_argument("--context", type=int, default=1024, help="of each at the start")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--chunk", type=int, default=0, help="prompt tokens beside the decode tokens of each step")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--no-table", action="store_true", help="without the table of kernels")
    flags = parser.parse(argv)
    require_gpus()
    launch.EARLY_START = flags.early
    figures = Figures()
    for name in flags.model:
        decoder = random_decoder(SPECS[name])
        with torch.inference_mode():
            if "decode" in flags.parts:
                decode(figures, name, decoder)
            if "prefill" in flags.parts:
                prefill(figures, name, decoder)
        if "executor" in flags.parts:
            through_executor(figures, name, decoder, flags)
        del decoder
        torch.cuda.empty_cache()
    figures.table()
    print(device_facts())
    figures.write(flags.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
