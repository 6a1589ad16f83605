"""The table that cpu_peers.py prints: medians, and how the engine compares."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from rounds import Figure, Sample

COLUMNS = ("engine", "llama.cpp", "transformers float32", "transformers bfloat16")
HEAD = ("figure", "engine", "llama.cpp", "ratio", "transformers fp32", "bf16", "ratio to the better")


class Median(NamedTuple):
    """Of the undisturbed samples; of all where none is."""

    value: float
    disturbed: bool

    def __str__(self) -> str:
        digits = 0 if self.value >= 1000 else 1 if self.value >= 10 else 2
        return f"{'~' if self.disturbed else ''}{self.value:,.{digits}f}"


def median(samples: list[Sample]) -> Median | None:
    if not samples:
        return None
    quiet = [sample.value for sample in samples if not sample.disturbed]
    return Median(statistics.median(quiet or [sample.value for sample in samples]), not quiet)


def advantage(figure: Figure, mine: Median | None, others: Sequence[Median | None]) -> float | None:
    """How many times as good the engine is as the best of `others`: above 1 it is better, whichever way it counts."""
    values = [other.value for other in others if other]
    if mine is None or not values:
        return None
    return mine.value / max(values) if figure.more_is_better else min(values) / mine.value


def ratios(figure: Figure, found: dict[str, Median | None]) -> tuple[float | None, float | None]:
    """(against llama.cpp, against the better transformers)"""
    mine, *others = (found.get(name) for name in COLUMNS)
    return advantage(figure, mine, others[:1]), advantage(figure, mine, others[1:])


def table(figures: Sequence[Figure], samples: dict[str, dict[str, list[Sample]]]) -> str:
    """Markdown. `samples`: by the figure's key, then by program."""
    lines: list[Sequence[str]] = [HEAD, ["---"] * len(HEAD)]
    for figure in figures:
        found = {name: median(values) for name, values in samples.get(figure.key, {}).items()}
        shown = [str(found.get(name) or "-") for name in COLUMNS]
        llama, transformers = (f"**{ratio:.2f}x**" if ratio else "-" for ratio in ratios(figure, found))
        lines.append((f"{figure.title}, {figure.unit}", *shown[:2], llama, *shown[2:], transformers))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
