"""The documentation site: it builds without a warning, its links lead somewhere, and it needs no other host."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.browser.axe import violations
from tests.browser.conftest import Visit, browser, expected_faults, visit
from tests.paths import ROOT
from tools import docs_site

__all__ = ["browser", "expected_faults", "visit"]

for name in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(name)

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated. Check CHANGES for Sphinx:DeprecationWarning")

FETCHED = {
    "script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data", "video": "src",
    "audio": "src", "embed": "src", "track": "src", "image": "href", "use": "href",
}  # fmt: skip
"""Attributes whose address a browser asks for by itself."""
OUTSIDE = re.compile(r"(?:https?:)?//")


class Page(HTMLParser):
    """What a page links to, what it fetches, and the names that can be linked to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if (address := values.get(FETCHED.get(tag, ""))) is not None:
            self.fetched.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    assert docs_site.build(out) == 0, "Sphinx warned: see above"
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html")}


def test_every_page_is_there(pages: dict[Path, Page], site: Path) -> None:
    names = {str(file.relative_to(site)) for file in pages}
    assert {f"docs/{page.stem}.html" for page in (ROOT / "docs").glob("*.md")} <= names
    assert {"index.html", "README.html", "SECURITY.html", "CHANGELOG.html", "search.html"} <= names


def test_links_lead_to_what_is_there(pages: dict[Path, Page]) -> None:
    wrong = []
    for file, page in pages.items():
        for link in page.links:
            if OUTSIDE.match(link) or link.startswith("mailto:"):
                continue
            path, _, anchor = link.partition("#")
            target = (file.parent / path).resolve() if path else file
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].ids | {"top"}):
                wrong.append(f"{file.name}: {link}")
    assert wrong == []


def test_nothing_comes_from_another_host(pages: dict[Path, Page], site: Path) -> None:
    assert [(file.name, found) for file, page in pages.items() for found in page.fetched if OUTSIDE.match(found)] == []
    assert list(_asked_by_styles(site)) == []


def _asked_by_styles(site: Path) -> Iterator[str]:
    for file in site.rglob("*.css"):
        addresses = re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""", file.read_text("utf-8"))
        yield from (f"{file.name}: {address}" for address in addresses if OUTSIDE.match(address))


def test_search_works_from_the_file_system_without_a_network(site: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or pytest.skip("needs chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", "--dump-dom"]
    page = f"file://{site}/search.html?q=preempt"
    found = subprocess.run([browser, *flags, page], capture_output=True, text=True, timeout=30).stdout
    assert 'href="docs/architecture.html' in found.split('id="search-results"')[1]


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietFiles, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietFiles(SimpleHTTPRequestHandler):
    """Says nothing about its requests."""

    def log_message(self, *args: object) -> None:
        pass


def test_a_browser_finds_no_fault_in_any_page(visit: Visit, address: str, pages: dict[Path, Page], site: Path) -> None:
    """No error on the console, nothing missing, no request to another host: `visit` fails otherwise."""
    page = visit(address, "/docs/index.html")
    for file in pages:
        if file != site / "index.html":  # it leads on at once
            page.goto(f"/{file.relative_to(site)}")


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("quickstart", "light"), ("quickstart", "dark"), ("architecture", "light"), ("tuning", "dark")],
)
def test_pages_are_accessible(visit: Visit, address: str, name: str, scheme: str) -> None:
    page = visit(address, f"/docs/{name}.html", color_scheme=scheme)
    assert [found for found in violations(page) if found.startswith(("critical", "serious"))] == []


@pytest.mark.parametrize("name", ["quickstart", "configuration", "reliability", "performance"])
def test_a_narrow_screen_scrolls_down_only(visit: Visit, address: str, name: str) -> None:
    page = visit(address, f"/docs/{name}.html", viewport={"width": 360, "height": 740})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360


@pytest.mark.parametrize(
    "wrong",
    ["[a](nowhere.md)", "[a](other.md#nowhere)", "![a](nowhere.png)", "```mermaid\nflowchart LR\n    a ~~> b\n```"],
)
def test_a_warning_is_an_error(wrong: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "index.md").write_text("# Pages\n\n## All\n\n- [Other](other.md)\n")
    (folder / "other.md").write_text(f"# Other\n\n{wrong}\n")
    assert docs_site.build(tmp_path / "site", "dummy", tmp_path) != 0
    assert "other.md" in capfd.readouterr().err
