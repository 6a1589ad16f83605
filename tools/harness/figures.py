"""Prints a tool's figures: one JSON line each at once, a table and a file at the end."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

Figure = dict[str, Any]


class Figures:
    """All figures of a run."""

    def __init__(self) -> None:
        self.rows: list[Figure] = []

    def add(self, name: str, value: float | bool | str, unit: str = "", **more: Any) -> Figure:
        """Prints one figure and keeps it. `more`: further fields of its JSON line."""
        shown = round(value, 5) if isinstance(value, float) else value
        row = {"figure": name, "value": shown, "unit": unit, **more}
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        return row

    def add_limited(self, name: str, value: float, unit: str, limit: float, *, less_is_better: bool = False) -> None:
        """Adds a figure with its share of the hardware's limit; `limit` 0: unknown."""
        share = (limit / value if less_is_better else value / limit) if limit else None
        self.add(name, value, unit, limit=limit or None, share=None if share is None else round(share, 3))

    def table(self) -> None:
        """The figure as text."""
        print()
        for row in self.rows:
            value = f"{row['value']:,.3f}" if isinstance(row["value"], float) else str(row["value"])
            share = f"{row['share']:8.1%}" if row.get("share") is not None else ""
            print(f"{row['figure']:<72}{value:>14} {row['unit']:<9}{share}")

    def write(self, file: Path | None) -> None:
        if file is not None:
            file.write_text(json.dumps(self.rows, indent=1) + "\n", "utf-8")


def median_seconds(work: Callable[[], object], repeats: int, warm_up: int = 2) -> float:
    """Median duration of one call, by the host's clock: `work` waits until it is done."""
    times = []
    for number in range(warm_up + repeats):
        begin = perf_counter()
        work()
        if number >= warm_up:
            times.append(perf_counter() - begin)
    return statistics.median(times)


def spread(seconds: Iterable[float]) -> str:
    """Median, 99th percentile and maximum in milliseconds, as text."""
    values = sorted(seconds)
    if not values:
        return "-"
    high = values[min(len(values) - 1, int(0.99 * len(values)))]
    return f"median {statistics.median(values) * 1e3:.1f}, 99 % {high * 1e3:.1f}, most {values[-1] * 1e3:.1f} ms"


def say(what: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)
