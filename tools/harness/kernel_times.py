"""Records the kernels that run on the device during some steps, by class."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from tools.harness.figures import Figures

CLASSES = (
    ("decode attention", r"_part_kernel|_share_kernel|_single_kernel"),
    ("prefill attention", r"_tile_attention_kernel|_tile_kernel|_chunks_kernel|flash|fmha|scaled_dot_product"),
    ("linear attention", r"_convolve_kernel|_factor_kernel|_decode_kernel|chunk_|delta"),
    ("experts", r"_grouped_kernel|_gate_up_kernel|_down_kernel|_tiles_kernel|_route_kernel|_sum_kernel|topk"),
    (
        "quantised products",
        r"_stream_kernel|_expand_kernel|_rows_kernel|_quantise_kernel|_scaled_product|_scaled_mm|fp8|e4m3",
    ),
    ("products", r"gemm|gemv|nvjet|cutlass|cublas|splitK|_one_token_kernel|::mm|::addmm|::linear|::bmm|_wmma"),
    (
        "norm, rotary, activation",
        r"norm_kernel|_activation_kernel|_gate_kernel|_rotary_kernel|_rotate_kernel|_squares|_write_kernel",
    ),
    ("sampling", r"_cut_kernel|_store_kernel|_adjust_kernel|_penalize_kernel|_scan_kernel|_finish_kernel"),
    ("plan and tables", r"_edit_kernel|_place_kernel|_lay_out_kernel|_commit_kernel|index|gather|scatter"),
    ("copies", r"[Mm]emcpy|[Mm]emset|copy|fill"),
)
"""(class, pattern of kernel names); the first that matches counts. The gated delta rule shares names with the norms and
the sampler."""
OTHERS = "others"


class Kernel(NamedTuple):
    name: str
    start: float
    """Seconds."""
    end: float


def class_of(name: str) -> str:
    return next((kind for kind, pattern in CLASSES if re.search(pattern, name)), OTHERS)


class Recorder:
    """Records the device between two steps; the caller says how many steps are done. On a CPU: torch's operations."""

    def __init__(self, first: int, steps: int) -> None:
        self._first, self._last = first, first + steps
        on_gpu = torch.cuda.is_available()
        self._profile = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
        self._running = False
        self.steps = 0
        """Number of recorded steps."""
        self.kernels: list[Kernel] = []

    def __call__(self, done: int) -> None:
        if self._running:
            self.steps += 1
        if done == self._first:
            self._profile.start()
            self._running = True
        elif done == self._last:
            self.stop()

    def stop(self) -> None:
        """Idempotent."""
        if not self._running:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profile.stop()
        self._running = False
        assert self._profile.profiler is not None
        found = self._profile.profiler.kineto_results  # torch's own list of events takes minutes for so many
        wanted = torch.autograd.DeviceType.CUDA if torch.cuda.is_available() else torch.autograd.DeviceType.CPU
        for event in found.events():
            if event.device_type() == wanted:
                start = event.start_ns() / 1e9
                self.kernels.append(Kernel(event.name(), start, start + event.duration_ns() / 1e9))
        self.kernels.sort(key=lambda one: one.start)

    def report(self, figures: Figures, name: str, names: int = 12) -> None:
        """Prints the time of a step by class, with its share of the busy time, the idle time, and the kernels that take
        most."""
        if not self.kernels:
            return
        by_class: dict[str, float] = defaultdict(float)
        by_name: dict[str, list[float]] = defaultdict(list)
        for one in self.kernels:
            by_class[class_of(one.name)] += one.end - one.start
            by_name[one.name].append(one.end - one.start)
        busy, wall = sum(by_class.values()), self.kernels[-1].end - self.kernels[0].start
        figures.add(f"{name}: steps that were profiled", self.steps, "steps")
        figures.add(f"{name}: a step", wall / self.steps * 1e3, "ms")
        for kind, spent in sorted(by_class.items(), key=lambda item: -item[1]):
            figures.add(f"{name}: {kind}", spent / self.steps * 1e3, "ms", share=round(spent / busy, 3))
        figures.add(f"{name}: device idle", self._idle() / wall, "of the time")
        for kernel, spent_each in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:names]:
            figures.add(
                f"{name}: kernel {kernel[:60]}",
                sum(spent_each) / self.steps * 1e3,
                "ms",
                share=round(sum(spent_each) / busy, 3),
                calls=round(len(spent_each) / self.steps, 1),
            )

    def _idle(self) -> float:
        """Seconds without a running kernel."""
        idle, end = 0.0, self.kernels[0].end
        for one in self.kernels:
            idle += max(0.0, one.start - end)
            end = max(end, one.end)
        return idle
