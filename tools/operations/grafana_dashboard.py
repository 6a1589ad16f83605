"""Writes the Grafana dashboard over our metrics.

    python -m tools.operations.grafana_dashboard            # prints its JSON
    python -m tools.operations.grafana_dashboard --write    # into deploy/grafana

A test compares the two and runs every query against a Prometheus that scrapes a server.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.harness.command_line import ToolParser
from tools.operations.grafana_panels import ROWS, Kind, Panel, one

FILE = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "lightllm-mp.json"
WIDTH = 24
"""Columns of Grafana's grid."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def panels() -> Iterator[dict[str, Any]]:
    """Rows and their panels, each at its place in the grid."""
    number, y = 1, 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        number, y, x = number + 1, y + 1, 0
        for panel in row:
            if x + panel.width > WIDTH:
                x, y = 0, y + panel.height
            yield _panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": panel.height})
            number, x = number + 1, x + panel.width
        y += row[-1].height


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.steps:
        steps = [{"color": color, "value": value or None} for color, value in panel.steps]
        defaults |= {"thresholds": {"mode": "absolute", "steps": steps}, "color": {"mode": "thresholds"}}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none"}
        defaults["custom"] = {"fillOpacity": 25 if panel.stacked else 8, "showPoints": "never", "stacking": stacking}
    targets = [
        {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": query.expr, "legendFormat": query.legend}
        for index, query in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel.kind),
        "targets": targets,
    }


def _options(kind: Kind) -> dict[str, Any]:
    if kind == "timeseries":
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if kind == "state-timeline":
        return {"showValue": "never", "mergeValues": True, "legend": {"showLegend": False}}
    return {"reduceOptions": {"calcs": ["lastNotNull"]}}


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> str:
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    model = _variable("model", "Model", "label_values(lightllm_actor_up, model_name)")
    instance = _variable("instance", "Server", 'label_values(lightllm_actor_up{model_name=~"$model"}, instance)')
    restarts = {
        "name": "Restarts",
        "enable": True,
        "datasource": SOURCE,
        "iconColor": "red",
        "expr": f"sum by (actor, instance) (changes({one('actor_restarts_total')}[1m])) > 0",
        "titleFormat": "{{actor}} of {{instance}} was replaced",
        "step": "60s",
    }
    value = {
        "uid": "lightllm-mp",
        "title": "lightllm-mp",
        "description": "Requests, latency, memory and processes of lightllm-mp servers.",
        "tags": ["llm", "lightllm-mp"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [source, model, instance]},
        "annotations": {"list": [restarts]},
        "panels": list(panels()),
    }
    return json.dumps(value, indent=1) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__)
    parser.add_argument("--write", action="store_true", help="into deploy/grafana")
    if parser.parse(argv).write:
        FILE.write_text(dashboard())
    else:
        print(dashboard(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
