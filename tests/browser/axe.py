"""axe-core, which finds faults of accessibility, out of the packages that web/ is tested with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.paths import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Page

FILE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
RUN = """async () => {
  const rules = {"heading-order": {enabled: false}};  // a model begins its headings where it likes
  const {violations} = await axe.run(document, {resultTypes: ["violations"], rules});
  return violations.flatMap(rule => rule.nodes.map(node =>
    `${rule.impact}: ${rule.id}: ${node.target.join(" ")}: ${node.failureSummary} ${node.html.slice(0, 200)}`));
}"""


def violations(page: Page) -> list[str]:
    """What axe finds in the page as it is now, the grave first. It comes through the debugger, which the page's
    Content-Security-Policy does not bind."""
    if not FILE.is_file():
        pytest.skip("axe-core is not installed (scripts/dev.sh test does it, or npm ci in web/)")
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(FILE.read_text("utf-8"))
    order = ("critical", "serious", "moderate", "minor")
    return sorted(page.evaluate(RUN), key=lambda line: order.index(line.partition(":")[0]))


def assert_accessible(page: Page) -> None:
    found = violations(page)
    assert not found, "\n".join(found)
