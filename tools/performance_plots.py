"""Draws the plots of docs/performance.md from the tables of that page, as SVG for light and dark pages.

    python -m tools.performance_plots            # into docs/figures/
    python -m tools.performance_plots --smoke    # into a folder that is removed again

A plot has no number of its own: it names a section, one of its tables, columns and rows. The numbers are written into
the file, too, and a test compares them with the page's. Needs `pip install '.[docs]'`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tools.harness.command_line import ToolParser, skip

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FIGURES = DOCS / "performance.md", DOCS / "figures"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")

Data = dict[str, dict[str, float]]
"""Series -> name of a bar or point -> its number."""


@dataclass(frozen=True)
class Panel:
    """One table of the page. `columns`: title of a column, or its number from 0 on -> series; the first column has the
    names of rows. `rows`: those whose name has this part, and their name here; empty: all, as they are called."""

    section: str
    columns: dict[str | int, str]
    table: int = 0
    rows: tuple[tuple[str, str], ...] = ()
    title: str = ""


@dataclass(frozen=True)
class Plot:
    """`mark`: where bars of ratios begin, on an axis where twice and half are equally far from it. `lines`: series over
    numbers, instead of bars."""

    name: str
    title: str
    unit: str
    panels: tuple[Panel, ...]
    mark: float | None = None
    lines: bool = False


PEERS = "Against llama.cpp and transformers"
RATIOS: dict[str | int, str] = {3: "against llama.cpp", 6: "against the better of transformers"}
PLOTS = (
    Plot(
        "cpu_peers",
        "This engine on two CPU cores: how many times as good",
        "ratio (right of the line this engine is better)",
        (
            Panel(PEERS, RATIOS, 0, title="AVX2"),
            Panel(PEERS, RATIOS, 1, title="AVX512-BF16"),
        ),
        mark=1.0,
    ),
    Plot(
        "cpu_products",
        "The same after products of packed weights became faster",
        "ratio to llama.cpp (right of the line this engine is better)",
        (Panel(PEERS, {3: "AVX2", 6: "AVX512-BF16"}, 2),),
        mark=1.0,
    ),
    Plot(
        "served",
        "Served on one H100: requests a second",
        "requests/s",
        (
            Panel(
                "Served",
                {"here": "here", "vLLM": "vLLM 0.26", "LightLLM": "LightLLM 2025-07"},
                rows=(
                    ("Llama-2-7B shape", "Llama-2-7B"),
                    ("--kv-cache-dtype int8", "Llama-2-7B, int8 KV"),
                    ("Llama-3-8B shape", "Llama-3-8B"),
                ),
            ),
        ),
    ),
    Plot(
        "steps",
        "A decode step on one H100, Llama-2-7B",
        "ms (less is better)",
        (
            Panel(
                "Steps through the executor",
                {"step": "here", "vLLM 0.26": "vLLM 0.26"},
                rows=(("1 sequence", "1 sequence"), ("16 sequences", "16 sequences"), ("64 sequences", "64 sequences")),
            ),
        ),
    ),
    Plot(
        "quantised",
        "Products of quantised weights on one H100, by rows",
        "ms (less is better)",
        (
            Panel(
                "Projections of few rows",
                {number + 1: rows for number, rows in enumerate(("1", "16", "32", "64", "128", "256"))},
                1,
                rows=(("bfloat16", "bfloat16"), ("int8", "int8"), ("int4", "int4"), ("fp8", "fp8")),
            ),
        ),
        lines=True,
    ),
    Plot(
        "recovery",
        "Pause of a stream when a process is killed",
        "seconds",
        (Panel("Kills", {"recovery, median": "median", "longest": "longest"}),),
    ),
    Plot(
        "hostile",
        "While others send requests that are dear by design",
        "ms",
        (
            Panel(
                "Faults and floods",
                {
                    "longest answer of /liveness, ms": "longest answer of /liveness",
                    "longest gap of a stream, ms": "longest gap of a stream",
                },
                4,
            ),
        ),
    ),
)


def tables(section: str) -> list[list[list[str]]]:
    """Cells of the tables of a section, the head first. Raises ValueError if the page has no such section."""
    parts = re.split(r"^#{2,4} (.+)$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    if section not in parts[1::2]:
        raise ValueError(f"{PAGE.name} has no section {section!r}")
    text = parts[parts.index(section) + 1]
    blocks = re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)
    return [[_cells(line) for number, line in enumerate(block.splitlines()) if number != 1] for block in blocks]


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("*", "").replace("`", "") for cell in line.strip("|").split("|")]


def read(panel: Panel) -> Data:
    """Raises ValueError if the table lacks a column or a row that the panel names."""
    head, *rows = tables(panel.section)[panel.table]
    data: Data = {}
    for column, series in panel.columns.items():
        at = column if isinstance(column, int) else head.index(column)
        values = {}
        for part, name in panel.rows or tuple((row[0], row[0]) for row in rows):
            row = next((row for row in rows if part in row[0]), None)
            if row is None:
                raise ValueError(f"{panel.section}: no row has {part!r}")
            if number := _NUMBER.search(row[at]):
                values[name] = float(number[0].replace(",", ""))
        data[series] = values
    return data


def drawn(file: Path) -> list[Data]:
    """The numbers that a file shows, panel by panel."""
    found = re.search(r"<dc:description>(.*?)</dc:description>", file.read_text("utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{file.name} does not say what it was drawn from")
    return json.loads(found[1].replace("&quot;", '"').replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


INK = "#010101"
SERIES = ("#020202", "#030303", "#040404", "#050505")
LIGHT = {INK: "#24292f", SERIES[0]: "#0969da", SERIES[1]: "#bc4c00", SERIES[2]: "#1a7f37", SERIES[3]: "#8250df"}
DARK = {INK: "#d0d7de", SERIES[0]: "#58a6ff", SERIES[1]: "#f0883e", SERIES[2]: "#56d364", SERIES[3]: "#bc8cff"}
"""Colours that matplotlib draws with -> colours that a reader sees, by the scheme of the page."""


def draw(plot: Plot, folder: Path) -> None:
    """Writes NAME.svg: text stays text, the ground is the page's, and colours follow its scheme."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    data = [read(panel) for panel in plot.panels]
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": plot.name, "font.size": 10}
    style |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        bars = max(sum(map(len, panel.values())) for panel in data)
        size = (8.2, 3.6 if plot.lines else 1.3 + 0.27 * bars)
        figure, axes = pyplot.subplots(1, len(data), figsize=size, squeeze=False, sharey=True, layout="constrained")
        for at, (panel, values) in enumerate(zip(plot.panels, data, strict=True)):
            (_lines if plot.lines else _bars)(axes[0][at], values, plot)
            axes[0][at].set_title(panel.title, fontsize=10)
        handles, labels = axes[0][0].get_legend_handles_labels()
        legend: Any = {"loc": "outside upper center", "ncols": len(labels), "frameon": False, "fontsize": 9}
        figure.legend(handles, labels, title=plot.title, title_fontsize=11, **legend)
        if not plot.lines:
            figure.supxlabel(plot.unit, fontsize=10)
        file = folder / f"{plot.name}.svg"
        about = {"Date": None, "Creator": None, "Title": plot.title, "Description": json.dumps(data)}
        figure.savefig(file, transparent=True, metadata=about)
        pyplot.close(figure)
    file.write_text(_with_schemes(file.read_text("utf-8")), "utf-8")


def _bars(axes: Any, data: Data, plot: Plot) -> None:
    names = list(dict.fromkeys(name for values in data.values() for name in values))
    thick = 0.8 / len(data)
    for number, (series, values) in enumerate(data.items()):
        places = [names.index(name) + (number - (len(data) - 1) / 2) * thick for name in values]
        lengths = [value - (plot.mark or 0.0) for value in values.values()]
        bars = axes.barh(places, lengths, thick * 0.92, left=plot.mark or 0.0, color=SERIES[number], label=series)
        axes.bar_label(bars, [f"{value:,g}" for value in values.values()], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.margins(x=0.12 if plot.mark is None else 0.18)
    if not axes.yaxis_inverted():
        axes.invert_yaxis()
    if plot.mark is not None:
        axes.set_xscale("log", base=2)
        axes.axvline(plot.mark, color=INK, linewidth=1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")


def _lines(axes: Any, data: Data, plot: Plot) -> None:
    """Columns are places of the axis, rows are series."""
    for number, name in enumerate(next(iter(data.values()))):
        axes.plot(list(data), [values[name] for values in data.values()], "o-", color=SERIES[number], label=name)
    axes.set_xlabel("rows")
    axes.set_ylabel(plot.unit)
    axes.set_ylim(bottom=0)


def _with_schemes(svg: str) -> str:
    names = {colour: f"--c{number}" for number, colour in enumerate(LIGHT)}
    for colour, name in names.items():
        svg = svg.replace(colour, f"var({name})")
    light, dark = (";".join(f"{names[colour]}:{seen}" for colour, seen in look.items()) for look in (LIGHT, DARK))
    scheme = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    svg = re.sub(r"<!DOCTYPE.*?>\s*", "", svg, flags=re.DOTALL)
    lines = [line.rstrip() for line in svg.splitlines()]
    return re.sub(r"(<svg [^>]*>)", rf"\1{scheme}", "\n".join(lines) + "\n", count=1)


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__)
    smoke = parser.parse(argv).smoke
    if find_spec("matplotlib") is None:
        skip("matplotlib: not installed (pip install '.[docs]')")
    with tempfile.TemporaryDirectory() as away:
        folder = Path(away) if smoke else FIGURES
        folder.mkdir(exist_ok=True)
        for plot in PLOTS:
            draw(plot, folder)
            print(folder / f"{plot.name}.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
