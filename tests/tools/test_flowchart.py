"""Flowcharts from their Mermaid source, without the library."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from tools.harness.flowchart import FlowEdge, flowchart_svg, parse_flowchart

SOURCE = "flowchart LR\n    a <--> b\n    b --> c\n    c --> a\n    a -. by hand .-> d\n    b --> d\n    c --> d\n"


def test_every_kind_of_edge() -> None:
    chart = parse_flowchart(SOURCE)
    assert chart.direction == "LR"
    assert chart.edges[0] == FlowEdge("a", "b", True, "")
    assert chart.edges[3] == FlowEdge("a", "d", False, "by hand")


@pytest.mark.parametrize("direction", ["LR", "TD"])
def test_boxes_do_not_overlap_and_circles_end(direction: str) -> None:
    drawn = ElementTree.fromstring(flowchart_svg(SOURCE.replace("LR", direction)))
    space = "{http://www.w3.org/2000/svg}"
    boxes = [[float(box.get(name)) for name in ("x", "y", "width", "height")] for box in drawn.iter(f"{space}rect")]
    assert len(boxes) == 4
    for at, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, *_ in boxes[:at]:
            assert abs(x - other_x) >= width or abs(y - other_y) >= height
    assert len([path for path in drawn.iter(f"{space}path") if path.get("stroke")]) == 6
    assert {text.text for text in drawn.iter(f"{space}text")} == set("abcd")


@pytest.mark.parametrize("source", ["", "graph LR\n    a --> b", "flowchart LR\n    a ~~> b"])
def test_another_source_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="flowchart"):
        flowchart_svg(source)
