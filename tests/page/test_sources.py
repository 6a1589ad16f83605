"""What web/ has: its build is what travels in the wheel, its types are right, and its own tests pass."""

from __future__ import annotations

from pathlib import Path

from lightllm_mp.actors.http.page import FOLDER, TYPES, read_page
from tests.page.npm import WEB, needs_npm, npm_run


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@needs_npm
def test_the_page_is_what_its_sources_build(tmp_path: Path) -> None:
    npm_run("build", tmp_path / "page")
    committed, built = files(FOLDER), files(tmp_path / "page")
    assert sorted(committed) == sorted(built), "run `npm ci && npm run build` in web/"
    assert [name for name, data in built.items() if committed[name] != data] == []


@needs_npm
def test_types() -> None:
    npm_run("check")


@needs_npm
def test_units() -> None:
    npm_run("test")


def test_everything_is_served_but_the_licences() -> None:
    found = files(FOLDER)
    assert {Path(name).name for name in found} - set(read_page()) == {"LICENSES.txt"}
    assert {Path(name).suffix for name in found} - set(TYPES) == {".txt"}
    assert b"preact" in found["LICENSES.txt"]


def test_it_is_small() -> None:
    """Gzipped: what the first paint needs, and everything, though parts are only fetched when a chat needs them."""
    found = read_page()
    first = [file for name, file in found.items() if name.encode() in found["index.html"].data or name == "index.html"]
    assert len(first) >= 5
    assert sum(len(file.compressed) for file in first) <= 60 * 1024
    assert sum(len(file.compressed) for file in found.values()) <= 400 * 1024


def test_the_lock_file_names_no_host() -> None:
    assert '"resolved"' not in (WEB / "package-lock.json").read_text("utf-8")
