"""One browser for the tests of this folder, and contexts whose faults fail the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.answers import ANSWERS
from tests.browser.scripted import ScriptedEngine, ScriptedServer, scripted
from tools.harness.browser import PATIENCE, BrowserMissing, Faults, chromium, new_context

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

Visit = Callable[..., "Page"]
"""visit(address of a server, path="/", *, settings={}, **options of a context) -> its page, in a context of its own.
`settings`: what the page remembers of its settings, as its own names say them."""
REMEMBER = """if (location.protocol === "http:" && !localStorage.getItem("lightllm-mp.settings"))
  localStorage.setItem("lightllm-mp.settings", {})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Playwright keeps an event loop running in this thread as long as it lives, so it ends with its module: tests of
    other folders in this process run loops of their own."""
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

    def visit(base_url: str, path: str = "/", settings: Mapping[str, Any] | None = None, **options: Any) -> Page:
        opened.append(new_context(browser, base_url, **options))
        if settings:
            opened[-1][0].add_init_script(REMEMBER.replace("{}", json.dumps(json.dumps(settings))))
        page = opened[-1][0].new_page()
        page.goto(path)
        return page

    yield visit
    for context, _ in opened:
        context.close()
    assert [fault for _, faults in opened for fault in faults.besides(expected_faults)] == []


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    """With an engine that says what the tests wrote down; a module may have another."""
    with scripted(ScriptedEngine(answers=ANSWERS)) as running:
        yield running


@pytest.fixture
def engine(server: ScriptedServer) -> Iterator[ScriptedEngine]:
    engine = server.engine
    assert isinstance(engine, ScriptedEngine)
    pace = engine.pace
    yield engine
    engine.pace, engine.answers = pace, ANSWERS
