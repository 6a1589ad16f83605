"""One browser for the tests of this folder, and contexts whose faults fail the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tools.harness.browser import PATIENCE, BrowserMissing, Faults, chromium, new_context

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

Visit = Callable[..., "Page"]
"""visit(address of a server, path="/", **options of a context) -> its page, in a context of its own"""


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    try:
        with chromium() as started:
            from playwright.sync_api import expect

            expect.set_options(timeout=PATIENCE * 1e3)
            yield started
    except BrowserMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def expected_faults() -> list[str]:
    """Regular expressions of what the test's pages may say; a test that kills a process appends its own."""
    return []


@pytest.fixture
def visit(browser: Browser, expected_faults: list[str]) -> Iterator[Visit]:
    opened: list[tuple[BrowserContext, Faults]] = []

    def visit(base_url: str, path: str = "/", **options: Any) -> Page:
        opened.append(new_context(browser, base_url, **options))
        page = opened[-1][0].new_page()
        page.goto(path)
        return page

    yield visit
    for context, _ in opened:
        context.close()
    assert [fault for _, faults in opened for fault in faults.besides(expected_faults)] == []
