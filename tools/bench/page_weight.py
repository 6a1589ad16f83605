"""Measures the page: bytes on the network, requests, time to the first contentful paint.

    python -m tools.bench.page_weight [--loads 9] [--json FILE] [flags of lightllm-mp serve]

Starts a server (of the default model unless a flag names another) and loads `/` in a headless Chromium with empty
caches, on this machine. `first load` is what the browser fetches by itself until the network is quiet; every other
file of the page is lazy: it is fetched when an answer has code, a formula, and so on. Bytes are those of the bodies as
the server sends them to a browser that takes gzip; headers are not counted.
"""

from __future__ import annotations

import gzip
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import lightllm_mp
from tools.harness.browser import BrowserMissing, chromium, new_context
from tools.harness.command_line import ToolParser, skip
from tools.harness.figures import Figures
from tools.harness.models import write_tiny_model
from tools.harness.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FILES = Path(lightllm_mp.__file__).parent / "page"
PAINT = """() => new Promise(done => {
  const first = list => list.getEntries().find(entry => entry.name === "first-contentful-paint");
  new PerformanceObserver(list => first(list) && done(first(list).startTime)).observe({type: "paint", buffered: true});
})"""


@dataclass(frozen=True)
class Load:
    """One load of the page with empty caches."""

    paths: list[str]
    """Paths that the page requested, in order."""
    elsewhere: list[str]
    """Requested addresses of other hosts."""
    paint_ms: float
    """Milliseconds from the start of the navigation to the first contentful paint."""
    loaded_ms: float
    """Milliseconds to the load event."""


def load(browser: Browser, base_url: str, path: str = "/") -> Load:
    context, _ = new_context(browser, base_url)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    try:
        page = context.new_page()
        page.goto(path)
        paint = page.evaluate(PAINT)
        loaded = page.evaluate("() => performance.getEntriesByType('navigation')[0].loadEventEnd")
        page.wait_for_load_state("networkidle")
    finally:
        context.close()
    ours = [url for url in asked if url.startswith(base_url)]
    elsewhere = [url for url in asked if url not in ours and urlsplit(url).scheme not in ("data", "blob")]
    return Load([urlsplit(url).path for url in ours], elsewhere, paint, loaded)


def sent_bytes(url: str) -> tuple[int, int]:
    """(bytes as sent, bytes unpacked) of a file."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        body = reply.read()
        return len(body), len(gzip.decompress(body) if reply.headers["Content-Encoding"] == "gzip" else body)


def files() -> list[str]:
    """Paths of the page's files on a server. /live is the same document as /."""
    return [
        "/",
        *sorted("/" + str(file.relative_to(FILES)) for file in (FILES / "assets").rglob("*") if file.is_file()),
    ]


def measure(browser: Browser, base_url: str, loads: int, figures: Figures) -> None:
    runs = [load(browser, base_url) for _ in range(loads)]
    sizes = {path: sent_bytes(base_url + path) for path in files()}
    first = {path for path in runs[0].paths if path in sizes}
    for path, (sent, unpacked) in sizes.items():
        figures.add(path, sent / 1e3, "kB", unpacked_kb=unpacked / 1e3, load="first" if path in first else "lazy")
    figures.add("first load", sum(sizes[path][0] for path in first) / 1e3, "kB")
    figures.add("lazy parts", sum(sent for path, (sent, _) in sizes.items() if path not in first) / 1e3, "kB")
    figures.add("all files", sum(sent for sent, _ in sizes.values()) / 1e3, "kB")
    figures.add("requests of the first load", len(runs[0].paths))
    figures.add("requests to other hosts", sum(len(run.elsewhere) for run in runs))
    figures.add("first contentful paint, median", statistics.median(run.paint_ms for run in runs), "ms")
    figures.add("first contentful paint, most", max(run.paint_ms for run in runs), "ms")
    figures.add("load event, median", statistics.median(run.loaded_ms for run in runs), "ms")


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, loads=1)
    parser.add_argument("--loads", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file for the figures")
    flags, serve = parser.parse_some(argv)
    figures = Figures()
    try:
        with tempfile.TemporaryDirectory() as folder, chromium() as browser:
            model = ["--model-dir", str(write_tiny_model(Path(folder)))] if flags.smoke else []
            with serving("--max-total-token-num", "8000", more=model + serve) as server:
                measure(browser, server.base_url, flags.loads, figures)
    except BrowserMissing as missing:
        skip(str(missing))
    figures.table()
    figures.write(flags.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
