"""Draws samples as an image: a panel for each group, a line for each series, a tick for each fault."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from tools.faults.samples import GROUPS, Samples

WIDTH, PANEL, LEFT, RIGHT, GAP = 1200, 210, 70, 250, 34
"""Pixels: the whole image, a panel's height, space for the scale and the legend, space between panels."""
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#17becf")


def members(samples: Samples, group: str) -> list[tuple[str, list[float]]]:
    """The series of one group by short name."""
    named = ((name.partition(": "), column) for name, column in sorted(samples.series.items()))
    return [(short, column) for (head, _, short), column in named if head == group]


def plot(samples: Samples, faults: Sequence[float], title: str, file: Path) -> None:
    """Writes a PNG. `faults`: their times in seconds."""
    image = Image.new("RGB", (WIDTH, GAP + len(GROUPS) * (PANEL + GAP)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((LEFT, 4), title, "black")
    end = max(samples.times, default=1.0) or 1.0
    for number, group in enumerate(GROUPS):
        top = GAP + number * (PANEL + GAP)
        _panel(draw, top, group, samples.times, members(samples, group), end)
        for moment in faults:
            x = _x(moment, end)
            draw.line((x, top + PANEL - 4, x, top + PANEL), "#bbbbbb")
    image.save(file)


def _panel(
    draw: ImageDraw.ImageDraw,
    top: int,
    group: str,
    times: list[float],
    series: list[tuple[str, list[float]]],
    end: float,
) -> None:
    most = max((v for _, column in series for v in column if not math.isnan(v)), default=1.0) or 1.0
    draw.rectangle((LEFT, top, WIDTH - RIGHT, top + PANEL), outline="#888888")
    draw.text((LEFT + 4, top - 14), f"{group} (0 to {end:.0f} s)", "black")
    for part in (0.0, 0.5, 1.0):
        y = top + PANEL - part * (PANEL - 8)
        draw.line((LEFT, y, WIDTH - RIGHT, y), "#eeeeee")
        draw.text((6, y - 6), f"{part * most:.4g}", "black")
    for index, (name, column) in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        draw.text((WIDTH - RIGHT + 10, top + 4 + 15 * index), name, colour)
        before: tuple[float, float] | None = None
        for moment, value in zip(times, column, strict=True):
            if math.isnan(value):
                before = None
                continue
            point = (_x(moment, end), top + PANEL - value / most * (PANEL - 8))
            if before is not None:
                draw.line((*before, *point), colour)
            before = point


def _x(moment: float, end: float) -> float:
    return LEFT + moment / end * (WIDTH - LEFT - RIGHT)
