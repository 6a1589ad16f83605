"""A server with API keys: the page asks for one, and keeps it for the tab only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.actors.http.test_auth import KEYS
from tests.browser.axe import assert_accessible
from tests.browser.conftest import Visit
from tests.browser.scripted import GREETING, ScriptedEngine, ScriptedServer, scripted
from tools.harness.chat_page import ChatPage

if TYPE_CHECKING:
    from playwright.sync_api import Page

USER = "first-key"


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted(ScriptedEngine(), keys=KEYS) as running:
        yield running


@pytest.fixture(autouse=True)
def refused(expected_faults: list[str]) -> None:
    """The browser itself says so on the console."""
    expected_faults += ["status of 401", "status of 403"]


def give_key(page: Page, key: str) -> None:
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key").fill(key)
    page.keyboard.press("Enter")


def test_a_key_is_asked_for_and_kept_for_the_tab(server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url)
    dialog = page.get_by_role("dialog", name="API key")
    dialog.wait_for()
    assert dialog.get_by_label("Key").get_attribute("type") == "password"
    assert page.evaluate("() => document.activeElement.id") == "api-key"
    assert_accessible(page)
    give_key(page, "wrong")
    page.get_by_text("This key is not valid here.").wait_for()
    give_key(page, USER)
    dialog.wait_for(state="detached")
    chat = ChatPage(page)
    assert chat.answer_to("hello") == GREETING
    page.reload()
    assert chat.answer_to("hello again") == GREETING
    assert not dialog.is_visible()
    assert USER not in page.evaluate("() => JSON.stringify({...localStorage}) + document.cookie")
    other = page.context.new_page()
    other.goto("/")
    other.get_by_role("dialog", name="API key").wait_for()
    ChatPage(other).answers.first.wait_for(state="attached")  # conversations are the browser's, the key is the tab's


def test_an_answer_waits_for_a_key(server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url)
    page.get_by_role("dialog", name="API key").get_by_role("button", name="Cancel").click()
    chat = ChatPage(page)
    chat.ask("hello")
    give_key(page, USER)
    page.get_by_role("dialog").wait_for(state="detached")
    page.get_by_role("button", name="Try again").click()
    chat.text.filter(has_text=GREETING).wait_for()


def test_a_key_is_in_no_export_and_can_be_forgotten(server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url)
    give_key(page, USER)
    ChatPage(page).answer_to("hello")
    page.get_by_role("button", name="Export").click()
    for kind in ("JSON", "curl", "Python"):
        page.get_by_role("dialog").get_by_role("button", name=kind, exact=True).click()
        shown = page.get_by_role("region", name=kind, exact=True)
        shown.filter(has_text="hello" if kind == "JSON" else "API_KEY").wait_for()
        assert USER not in shown.inner_text()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Forget").click()
    page.reload()
    page.get_by_role("dialog", name="API key").wait_for()


def test_the_live_view_is_for_administrators(server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url, "/live")
    give_key(page, USER)
    page.get_by_role("alert").wait_for()
