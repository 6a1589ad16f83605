"""Links of the pages lead somewhere on a code host, where nothing builds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import PAGES, anchors, links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_anchors(page: Path) -> None:
    wrong = []
    for link in links(page):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_the_check_sees(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, with `code`\n[a](b.md) `[c](d)` ![e](f.png)\n```\n# no heading\n[g](h)\n```\n[i](#j)\n## B\n## B\n"
    )
    assert links(page) == ["b.md", "f.png", "#j"]
    assert anchors(page) == {"a-title-with-code", "b", "b-1"}
