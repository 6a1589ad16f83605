"""The programs that stand in the pages: fenced blocks of bash, Python and JavaScript, and what is said about them.

Comments in the lines before a block, which no reader sees:

    <!-- not run: REASON -->     it is not run
    <!-- server: NAME -->        it asks another server than that of the default model
    <!-- prints: TEXT -->        its output has this text
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.paths import ROOT

PAGES = ("quickstart.md", "examples.md", "python.md")
"""Pages of docs/ of which every program is run."""
ADDRESS = "127.0.0.1:8000"
"""Of the server, in all pages."""
_BLOCK = re.compile(r"^((?:<!-- [^\n]* -->\n)*)```(bash|python|javascript)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!-- (not run|server|prints): (.+) -->")


@dataclass(frozen=True)
class Example:
    """One program of a page. `prints`: what has to be in its output. `skipped`: why it is not run."""

    page: str
    line: int
    language: str
    code: str
    server: str = "default"
    prints: str = ""
    skipped: str = ""

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    def asking(self, base_url: str) -> str:
        """Its code, for the server at this address."""
        return self.code.replace(ADDRESS, base_url.removeprefix("http://"))


def examples(text: str, page: str = "") -> Iterator[Example]:
    """Raises ValueError for a comment of an unknown kind."""
    for found in _BLOCK.finditer(text):
        said = {}
        for comment in found[1].splitlines():
            if (known := _COMMENT.fullmatch(comment)) is None:
                raise ValueError(f"{page}: {comment} says nothing about an example")
            said[known[1]] = known[2]
        line = text.count("\n", 0, found.start(2)) + 1
        yield Example(
            page,
            line,
            found[2],
            found[3],
            said.get("server", "default"),
            said.get("prints", ""),
            said.get("not run", ""),
        )


def all_examples() -> list[Example]:
    return [found for page in PAGES for found in examples((ROOT / "docs" / page).read_text("utf-8"), page)]
