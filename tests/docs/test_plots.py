"""Plots of docs/performance.md show numbers of its tables, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools import performance_plots
from tools.performance_plots import FIGURES, PAGE, PLOTS, Panel, Plot


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_what_is_drawn_stands_in_the_page(plot: Plot) -> None:
    drawn = performance_plots.drawn(FIGURES / f"{plot.name}.svg")
    assert drawn == [performance_plots.read(panel) for panel in plot.panels], "run python -m tools.performance_plots"
    assert all(values for panel in drawn for values in panel.values())
    assert re.search(rf"!\[[^\]]{{20,}}\]\(figures/{plot.name}\.svg\)", PAGE.read_text("utf-8"))


def test_every_file_has_its_plot() -> None:
    assert {file.name for file in FIGURES.iterdir()} == {f"{plot.name}.svg" for plot in PLOTS}


@pytest.mark.parametrize("file", sorted(FIGURES.glob("*.svg")), ids=lambda file: file.stem)
def test_a_file_is_text_in_the_colours_of_the_page(file: Path) -> None:
    text = file.read_text("utf-8")
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()}
    assert "text" in tags
    assert not tags & {"image", "script", "foreignObject"}
    assert "prefers-color-scheme:dark" in text
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", text)) <= {"#ffffff", "#000000"}
    assert len(text) < 60_000


def test_numbers_are_drawn_as_they_are_read(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = PLOTS[2]
    performance_plots.draw(plot, tmp_path)
    file = tmp_path / f"{plot.name}.svg"
    data = [performance_plots.read(panel) for panel in plot.panels]
    assert performance_plots.drawn(file) == data
    shown = set(re.findall(r">([\d,.]+)</text>", file.read_text("utf-8")))
    assert {f"{value:,g}" for panel in data for values in panel.values() for value in values.values()} <= shown


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        (Panel("No such section", {}), "no section"),
        (Panel("Served", {"here": "here"}, rows=(("No such row", "x"),)), "no row"),
        (Panel("Served", {"no such column": "x"}), "is not in list"),
    ],
)
def test_what_the_page_lacks_is_an_error(panel: Panel, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        performance_plots.read(panel)
