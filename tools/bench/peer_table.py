"""Makes the table of cpu_peers.py: one value for all rounds, and the engine's ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from tools.bench.rounds import Figure, Sample

COLUMNS = ("engine", "llama.cpp", "transformers float32", "transformers bfloat16")
HEAD = ("figure", "engine", "llama.cpp", "ratio", "transformers fp32", "bf16", "ratio to the better")


class Summary(NamedTuple):
    """The value that stands for all rounds."""

    value: float
    disturbed: bool

    def __str__(self) -> str:
        digits = 0 if self.value >= 1000 else 1 if self.value >= 10 else 2
        return f"{'~' if self.disturbed else ''}{self.value:,.{digits}f}"


def summary(figure: Figure, samples: Sequence[Sample]) -> Summary | None:
    """The median of the undisturbed samples. If there are none, the best sample, which is the nearest."""
    if not samples:
        return None
    quiet = [sample.value for sample in samples if not sample.disturbed]
    if quiet:
        return Summary(statistics.median(quiet), False)
    values = [sample.value for sample in samples]
    return Summary(max(values) if figure.more_is_better else min(values), True)


def advantage(figure: Figure, mine: Summary | None, others: Sequence[Summary | None]) -> Summary | None:
    """The engine's ratio to the best of `others`. Above 1 the engine is better, for figures of either direction."""
    present = [other for other in others if other]
    if mine is None or not present:
        return None
    best = (max if figure.more_is_better else min)(present)
    ratio = mine.value / best.value if figure.more_is_better else best.value / mine.value
    return Summary(ratio, mine.disturbed or best.disturbed)


def ratios(figure: Figure, found: dict[str, Summary | None]) -> tuple[Summary | None, Summary | None]:
    """(against llama.cpp, against the better transformers)"""
    mine, *others = (found.get(name) for name in COLUMNS)
    return advantage(figure, mine, others[:1]), advantage(figure, mine, others[1:])


def times(ratio: Summary | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio}x" if ratio.disturbed else f"**{ratio}x**"


def table(figures: Sequence[Figure], samples: dict[str, dict[str, list[Sample]]]) -> str:
    """The table in Markdown. `samples`: by the figure's key, then by program."""
    lines: list[Sequence[str]] = [HEAD, ["---"] * len(HEAD)]
    for figure in figures:
        found = {name: summary(figure, values) for name, values in samples.get(figure.key, {}).items()}
        shown = [str(found.get(name) or "-") for name in COLUMNS]
        llama, transformers = map(times, ratios(figure, found))
        lines.append((f"{figure.title}, {figure.unit}", *shown[:2], llama, *shown[2:], transformers))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
