"""Samples of a server's memory, descriptors and requests over time, and whether they stay flat."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tools.harness.metrics import parse
from tools.harness.procfs import MIB, actors, age, descendants, descriptors, memory_files, resident

GAUGES = (
    "kv_used_tokens",
    "cache_length",
    "num_requests_running",
    "num_requests_waiting",
    "live_requests",
    "image_requests_waiting",
    "images_in_work",
    "image_cache_leased_items",
)
"""Series of /metrics; missing in a sample while http is being replaced."""
BYTES = {"queue_bytes": "in lanes", "image_file_bytes": "image files"}
"""Series of /metrics in bytes."""
WARM_UP = 0.2
"""The share at the start of the run that does not count, because caches fill."""
GROWN_UP = 3.0
"""Seconds after which a process has its usual size. Younger processes do not count."""
GROUPS = ("resident MiB", "descriptors", "shared memory MiB", "KV tokens", "requests", "queues KiB")
"""Panels of the plot; series are named `group: what`."""
ALLOWED = {"resident MiB": (8.0, 0.03), "descriptors": (6.0, 0.0), "shared memory MiB": (2.0, 0.02)}
"""(absolute, share of the mean) that a series may grow over the whole run; for the others see FREE."""
FREE = (3.0, 0.25)
"""The load varies but must not grow. The end of the run is checked exactly."""
BLOCK = 30.0
"""Seconds whose mean is one point of the line: samples depend on those a second before, so single samples would make
the error of a slope look too small."""
CERTAIN = 3.0
"""A slope counts if it is more than this many standard errors."""


@dataclass
class Samples:
    """Columns over time; a value is missing (NaN) while a process is being replaced."""

    begin: float = field(default_factory=time.monotonic)
    times: list[float] = field(default_factory=list)
    """Seconds since `begin`."""
    series: dict[str, list[float]] = field(default_factory=dict)

    def add(self, now: float, values: Mapping[str, float]) -> None:
        for name in values:
            self.series.setdefault(name, [math.nan] * len(self.times))
        self.times.append(now)
        for name, column in self.series.items():
            column.append(values.get(name, math.nan))

    def summary(self) -> dict[str, dict[str, Any]]:
        """{series: mean, least, most, slope per hour, and whether it is flat}"""
        return {name: judge(name, self.times, column) for name, column in sorted(self.series.items())}


def judge(name: str, times: Sequence[float], column: Sequence[float]) -> dict[str, Any]:
    """One series. It is flat if it grows by no more than is allowed or no more than its noise."""
    begin = times[0] + WARM_UP * (times[-1] - times[0]) if times else 0.0
    points = [(t, v) for t, v in zip(times, column, strict=True) if t >= begin and not math.isnan(v)]
    values = [v for _, v in points]
    mean = sum(values) / len(values) if values else 0.0
    slope, error = line(blocks(points))
    growth = slope * (points[-1][0] - points[0][0]) if points else 0.0
    absolute, share = ALLOWED.get(name.partition(":")[0], FREE)
    flat = growth <= max(absolute, share * mean) or slope <= CERTAIN * error
    return {
        "mean": round(mean, 3),
        "least": round(min(values, default=0.0), 3),
        "most": round(max(values, default=0.0), 3),
        "slope_per_hour": round(slope * 3600, 3),
        "standard_error_per_hour": round(error * 3600, 3),
        "growth": round(growth, 3),
        "flat": flat,
    }


def blocks(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean time and value of each BLOCK seconds."""
    found: dict[int, list[tuple[float, float]]] = {}
    for moment, value in points:
        found.setdefault(int(moment // BLOCK), []).append((moment, value))
    return [(sum(t for t, _ in block) / len(block), sum(v for _, v in block) / len(block)) for block in found.values()]


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(slope, its standard error) of the least-squares line; (0, 0) for fewer than three points."""
    count = len(points)
    if count < 3:
        return 0.0, 0.0
    x, y = (sum(column) / count for column in zip(*points, strict=True))
    spread = sum((t - x) ** 2 for t, _ in points)
    slope = sum((t - x) * (v - y) for t, v in points) / spread
    rest = sum((v - y - slope * (t - x)) ** 2 for t, v in points)
    return slope, math.sqrt(rest / (count - 2) / spread)


async def sample_for_ever(supervisor: int, metrics: Callable[[], Awaitable[str]], samples: Samples) -> None:
    """Takes a sample every second until it is cancelled."""
    samples.begin = time.monotonic()
    while True:
        try:
            numbers = parse(await asyncio.wait_for(metrics(), 0.8))
        except (aiohttp.ClientError, OSError, TimeoutError):
            numbers = {}
        samples.add(time.monotonic() - samples.begin, {**of_processes(supervisor), **of_metrics(numbers)})
        await asyncio.sleep(max(0.05, len(samples.times) - (time.monotonic() - samples.begin)))


def of_processes(supervisor: int) -> dict[str, float]:
    now = actors(supervisor)
    values: dict[str, float] = {}
    for name, pid in now.items():
        if age(pid) < GROWN_UP:
            continue
        values[f"resident MiB: {name}"] = resident(pid) / MIB
        values[f"descriptors: {name}"] = float(len(descriptors(pid)))
    decoders = [pid for pid, _ in descendants(supervisor) if pid not in now.values()]
    if decoders and min(map(age, decoders)) >= GROWN_UP:
        values["resident MiB: image decoders"] = sum(map(resident, decoders)) / MIB
    files, size = memory_files(now.values())
    values["shared memory MiB: allocated"] = size / MIB
    values["descriptors: memory files"] = float(files)
    return values


def of_metrics(numbers: Mapping[str, float]) -> dict[str, float]:
    found = {name: numbers[name] for name in GAUGES if name in numbers}
    values = {f"KV tokens: {name}": found.pop(name) for name in ("kv_used_tokens", "cache_length") if name in found}
    values |= {f"queues KiB: {short}": numbers[name] / 1024 for name, short in BYTES.items() if name in numbers}
    return values | {f"requests: {name}": value for name, value in found.items()}
