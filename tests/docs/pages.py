"""The pages of the documentation as files, and what stands in them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.paths import ROOT

PAGES = sorted({*(ROOT / "docs").glob("*.md"), *map(ROOT.joinpath, ("README.md", "SECURITY.md", "CHANGELOG.md"))})
_FENCE = re.compile(r"^(```+)[^\n]*\n.*?^\1[ ]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def links(page: Path) -> list[str]:
    """Targets of the page's links and images, as they are written."""
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """The names that a code host gives to the page's headings; those of equal headings are numbered."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+?)\s*$", prose(page), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(next(one for one in (name, *(f"{name}-{n}" for n in range(1, 100))) if one not in found))
    return found
