"""Where the time of a decode step goes: per-kernel times, and the gap between two steps, through the real executor.

    python scripts/profile_step.py --arch llama2-7b --batch 64 --context 1024

Rows are given random ids and slots, so no prefill is needed; then steps are planned, submitted one ahead of the answer
and collected as the worker does. Prints a table of kernels and one JSON line a figure. Needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from gpu_steps import SPECS, random_decoder
from torch.profiler import ProfilerActivity, profile

from lightllm_mp.engine.executor import Executor
from lightllm_mp.kernels.triton import launch
from lightllm_mp.messages import Sampling
from lightllm_mp.plan import PlanBuilder


class SteadyDecode:
    """`batch` rows of `context` tokens that are decoded for ever, greedily or with the given sampling, and beside them
    in each step a new prompt of `chunk` tokens."""

    def __init__(self, executor: Executor, batch: int, context: int, sampling: Sampling, chunk: int = 0) -> None:
        self.executor, self.batch, self.chunk, self.sampling = executor, batch, chunk, sampling
        self.host: list[float] = []
        """Seconds that submitting took."""
        self.rows = np.arange(batch)
        self.end = np.full(batch, context)
        self.step, self.next_slot = 0, batch * context
        builder = PlanBuilder(0)
        slots = np.random.default_rng(0).permutation(batch * context).astype(np.int32)
        for row in range(batch):
            builder.setup(row, context, sampling)
            builder.write_ids(row, 0, np.random.default_rng(row).integers(3, 32000, context + 1).astype(np.int32))
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


def kernels(decode: SteadyDecode, steps: int) -> list[Any]:
    """What ran on the device, in order of its start."""
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        decode.run(steps)
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
        share = sum(spent) / whole
        print(
            f"{name:72} {len(spent) / steps:7.1f} {statistics.median(spent):9.2f} "
            f"{sum(spent) / steps:10.1f} {share:6.1%}"
        )


def gaps(events: list[Any]) -> tuple[float, float]:
    """(share of time in which nothing runs, median microseconds before a step's first work): a step's first work is
    the copy of its plan."""
    idle, before, end = 0.0, [], events[0].time_range.end
    for event in events[1:]:
        gap = max(0.0, event.time_range.start - end)
        idle += gap
        if "HtoD" in event.name:
            before.append(gap)
        end = max(end, event.time_range.end)
    return idle / (end - events[0].time_range.start), statistics.median(before) if before else float("nan")


def figure(name: str, value: float, unit: str) -> None:
    print(json.dumps({"figure": name, "value": round(value, 4), "unit": unit}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=SPECS, default="llama2-7b")
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--chunk", type=int, default=0, help="prompt tokens beside the decode tokens of each step")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--no-table", action="store_true")
    parser.add_argument("--early", action=argparse.BooleanOptionalAction, default=launch.EARLY_START)
    options = parser.parse_args()
    launch.EARLY_START = options.early
    model = random_decoder(SPECS[options.arch])
    most, longest = max(options.batch), options.context + 4 * options.steps + 8
    executor = Executor(
        model, kv_tokens=most * longest, rows=most + 1, max_context=longest, step_tokens=8192, device="cuda"
    )
    began = time.perf_counter()
    executor.warm_up()
    figure("warm-up", time.perf_counter() - began, "s")
    for batch in options.batch:
        executor.reset()
        decode = SteadyDecode(
            executor, batch, options.context, Sampling(seed=1, temperature=options.temperature), options.chunk
        )
        decode.run(options.steps)
        step = statistics.median(decode.run(options.steps))
        events = kernels(decode, options.steps)
        if not options.no_table:
            table(events, options.steps + 1)
        idle, before = gaps(events)
        what = f"{options.arch} decode {batch} x {options.context}" + f" + {options.chunk}" * bool(options.chunk)
        figure(f"{what}: step", step * 1e3, "ms")
        figure(f"{what}: host, submitting", statistics.median(decode.host) * 1e3, "ms")
        figure(f"{what}: device idle", idle, "of the time")
        figure(f"{what}: gap before a step", before / (step * 1e6), "of the step")


if __name__ == "__main__":
    main()
