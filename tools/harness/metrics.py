"""Reads a server's /metrics fast: tools look for a fault's end many times a second."""

from __future__ import annotations

import re
from collections.abc import Mapping

SAMPLE = re.compile(r"^lightllm_(\w+)\{(.*)\} (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
IDLE = ("num_requests_running", "num_requests_waiting", "kv_used_tokens", "live_requests", "queue_bytes")
"""Gauges that are 0 in an idle server; of a gauge with several rows, the sum."""
IDLE_IMAGES = ("image_cache_leased_items", "image_requests_waiting", "images_in_work", "image_file_bytes")
"""The same for a server of images."""


def parse(text: str) -> dict[str, float]:
    """{name: value} of /metrics without the prefix; rows with one name are added up."""
    numbers: dict[str, float] = {}
    for line in text.splitlines():
        if (found := SAMPLE.match(line)) is not None:
            numbers[found[1]] = numbers.get(found[1], 0.0) + float(found[3])
    return numbers


def parse_rows(text: str, name: str, label: str) -> dict[str, float]:
    """{value of `label`: value} of one metric."""
    rows = {}
    for line in text.splitlines():
        if (found := SAMPLE.match(line)) is not None and found[1] == name:
            rows[dict(LABEL.findall(found[2])).get(label, "")] = float(found[3])
    return rows


def not_idle(numbers: Mapping[str, float], *, images: bool) -> dict[str, float]:
    """Gauges that must be 0 in an idle server and are not, or are missing."""
    names = IDLE + IDLE_IMAGES if images else IDLE
    return {name: numbers.get(name, -1.0) for name in names if numbers.get(name) != 0.0}
