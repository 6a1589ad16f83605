"""Draws a Mermaid flowchart as SVG in the colour of the text, for pages that load nothing from another host.

Understands what docs/architecture.md uses: `flowchart LR` or `TD`, and edges `a --> b`, `a <--> b`, `a -. label .-> b`.
A box stands in a level by the longest path to it. An arrow over several levels has a place of its own in each between.
A label makes an arrow dashed; its words are left out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from html import escape
from itertools import pairwise
from typing import NamedTuple

_EDGE = re.compile(r"\s*(\w+)\s+(<-->|-->|-\.\s*(.+?)\s*\.->)\s+(\w+)\s*")
WIDTH, HEIGHT = 112.0, 32.0
"""Size of a box in pixels."""
GAP, THIN, LEVEL = 20.0, 6.0, 60.0
"""Pixels between boxes of a level, width of an arrow that passes a level, pixels between levels."""
SWEEPS = 16

Point = tuple[float, float]


class FlowEdge(NamedTuple):
    """An arrow of a flowchart."""

    first: str
    second: str
    both_ways: bool
    label: str


class Flowchart(NamedTuple):
    """A parsed flowchart. `direction`: LR or TD."""

    direction: str
    edges: list[FlowEdge]


def parse_flowchart(source: str) -> Flowchart:
    """Raises ValueError for a line that is neither a head nor an edge."""
    head, *lines = [line for line in source.splitlines() if line.strip()] or [""]
    found = re.fullmatch(r"\s*flowchart (LR|TD)\s*", head)
    if found is None:
        raise ValueError(f"{head!r} is not the head of a flowchart")
    edges = []
    for line in lines:
        if (edge := _EDGE.fullmatch(line)) is None:
            raise ValueError(f"{line!r} is not an edge of a flowchart")
        edges.append(FlowEdge(edge[1], edge[4], edge[2] == "<-->", edge[3] or ""))
    return Flowchart(found[1], edges)


def flowchart_svg(source: str) -> str:
    """An <svg> element of class `flowchart`, to stand in a page. Raises ValueError like parse_flowchart."""
    chart = parse_flowchart(source)
    depth = _depths(chart.edges)
    ways = [_way(edge, depth, number) for number, edge in enumerate(chart.edges)]
    levels = _ordered(depth, ways)
    across_box, along_box = (HEIGHT, WIDTH) if chart.direction == "LR" else (WIDTH, HEIGHT)
    places, width, height = _places(levels, depth, across_box, along_box)
    turn = chart.direction == "TD"
    half = along_box / 2
    shapes = [_arrow(edge, way, depth, places, half, turn) for edge, way in zip(chart.edges, ways, strict=True)]
    shapes += [_box(name, *_turned(places[name], turn)) for name in depth]
    size = _turned((width, height), turn)
    return (
        f'<svg class="flowchart" viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" width="{size[0]:.0f}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg" aria-label="{escape(_in_words(chart.edges))}" font-size="13">'
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="currentColor"/></marker></defs>'
        f"{''.join(shapes)}</svg>"
    )


def _depths(edges: list[FlowEdge]) -> dict[str, int]:
    """The level of each box. An arrow that closes a cycle does not count."""
    before: dict[str, set[str]] = {name: set() for edge in edges for name in (edge.first, edge.second)}
    for edge in edges:
        if not _comes_after(before, edge.first, edge.second):
            before[edge.second].add(edge.first)
    depth = dict.fromkeys(before, 0)
    for _ in before:
        depth = {name: max((depth[other] + 1 for other in before[name]), default=0) for name in before}
    return depth


def _comes_after(before: dict[str, set[str]], name: str, other: str) -> bool:
    return name == other or any(_comes_after(before, earlier, other) for earlier in before[name])


def _way(edge: FlowEdge, depth: dict[str, int], number: int) -> list[str]:
    """The places that an arrow passes, from the upper level to the lower one: box, its own places, box."""
    upper, lower = sorted((edge.first, edge.second), key=lambda name: depth[name])
    return [upper, *(f"{number}/{level}" for level in range(depth[upper] + 1, depth[lower])), lower]


def _ordered(depth: dict[str, int], ways: list[list[str]]) -> list[list[str]]:
    """The places of each level, ordered so that few arrows cross."""
    levels: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    beside: dict[str, list[str]] = defaultdict(list)
    for way in ways:
        for place in way[1:-1]:
            levels[int(place.split("/")[1])].append(place)
        for one, next_one in pairwise(way):
            beside[one].append(next_one)
            beside[next_one].append(one)
    for name, number in depth.items():
        levels[number].append(name)
    for _ in range(SWEEPS):
        at = {name: place - len(names) / 2 for names in levels for place, name in enumerate(names)}
        for names in levels:
            names.sort(key=lambda name: sum(at[other] for other in beside[name]) / max(1, len(beside[name])))
            at |= {name: place - len(names) / 2 for place, name in enumerate(names)}
    return levels


def _places(
    levels: list[list[str]], depth: dict[str, int], across_box: float, along_box: float
) -> tuple[dict[str, Point], float, float]:
    """(along, across) of the middle of each place, and the size of the drawing."""
    places: dict[str, Point] = {}
    totals = [sum((across_box if name in depth else THIN) + GAP for name in names) - GAP for names in levels]
    for number, names in enumerate(levels):
        at = (max(totals) - totals[number]) / 2 + 1
        for name in names:
            size = across_box if name in depth else THIN
            places[name] = (number * (along_box + LEVEL) + along_box / 2 + 1, at + size / 2)
            at += size + GAP
    return places, len(levels) * (along_box + LEVEL) - LEVEL + 2, max(totals) + 2


def _arrow(
    edge: FlowEdge, way: list[str], depth: dict[str, int], places: dict[str, Point], half: float, turn: bool
) -> str:
    def at(along: float, across: float) -> str:
        return "{:.1f} {:.1f}".format(*_turned((along, across), turn))

    path = f"M{at(places[way[0]][0] + half, places[way[0]][1])}"
    for one, next_one in pairwise(way):
        (from_along, from_across), (to_along, to_across) = places[one], places[next_one]
        begin, end = from_along + half, to_along - half
        middle = (begin + end) / 2
        path += f"C{at(middle, from_across)} {at(middle, to_across)} {at(end, to_across)}"
        if next_one not in depth:
            path += f"L{at(to_along + half, to_across)}"
    heads = [edge.second, edge.first] if edge.both_ways else [edge.second]
    marks = "".join(f' marker-{"start" if name == way[0] else "end"}="url(#arrow)"' for name in heads)
    dashed = ' stroke-dasharray="4 4"' if edge.label else ""
    return f'<path d="{path}" fill="none" stroke="currentColor" stroke-opacity=".65"{dashed}{marks}/>'


def _box(name: str, x: float, y: float) -> str:
    return (
        f'<rect x="{x - WIDTH / 2:.1f}" y="{y - HEIGHT / 2:.1f}" width="{WIDTH:.0f}" height="{HEIGHT:.0f}" rx="6" '
        f'fill="currentColor" fill-opacity=".08" stroke="currentColor"/>'
        f'<text x="{x:.1f}" y="{y + 4.5:.1f}" text-anchor="middle" fill="currentColor">{escape(name)}</text>'
    )


def _turned(point: Point, turn: bool) -> Point:
    return point[::-1] if turn else point


def _in_words(edges: list[FlowEdge]) -> str:
    return "; ".join(f"{edge.first} {'and' if edge.both_ways else 'to'} {edge.second}" for edge in edges)
