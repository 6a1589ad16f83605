"""A conversation of hundreds of messages stays quick; one that two tabs show is written once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.conftest import Visit
from tests.browser.scripted import FOREVER, GREETING, ScriptedEngine, ScriptedServer, scripted
from tools.harness.chat_page import ChatPage

MESSAGES = 300
AT_FIRST = 40
"""So many messages are laid out; more come when the reader wants them."""


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted(ScriptedEngine(pace=0.01)) as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An exported conversation."""
    messages = [
        {
            "id": f"m{i}",
            "parent": f"m{i - 1}" if i else None,
            "created": i,
            "role": "user" if i % 2 == 0 else "assistant",
            "text": f"text {i}\n\n```python\nprint({i})\n```\n",
            "state": "done",
        }
        for i in range(MESSAGES)
    ]
    conversation = {"id": "c", "title": "Long", "leaf": f"m{MESSAGES - 1}"}
    path = tmp_path / "long.json"
    found = {"format": "lightllm-mp conversation", "conversation": conversation, "messages": messages, "pictures": []}
    path.write_text(json.dumps(found))
    return path


def test_the_newest_messages_come_first(file: Path, server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url)
    chat, shown = ChatPage(page), page.locator("#thread > .message")
    page.get_by_label("File of a conversation").set_input_files(file)
    page.get_by_text(f"text {MESSAGES - 1}").wait_for()
    assert shown.count() == AT_FIRST
    assert chat.answer_to("And now?") == GREETING
    assert shown.count() == AT_FIRST + 2

    first = page.get_by_text(f"text {MESSAGES - AT_FIRST}\n")
    page.locator(".thread-scroller").evaluate("element => element.scrollTop = 0")
    shown.nth(2 * AT_FIRST + 1).wait_for(state="attached")
    assert first.is_visible()  # what was on the screen is still there
    assert (
        page.get_by_role("button", name="Show earlier messages").inner_text().endswith(f"({MESSAGES - 2 * AT_FIRST})")
    )


def test_two_tabs_show_one_answer(server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url)
    chat = ChatPage(page)
    chat.ask(FOREVER)
    page.locator("[data-state=streaming] .markdown").wait_for()
    second = page.context.new_page()
    second.goto("/")
    second.get_by_text("Another tab receives this answer.").wait_for()
    chat.stop.click()
    chat.until_idle()
    second.get_by_text("Stopped.", exact=True).wait_for()
    assert ChatPage(second).text.inner_text() == chat.text.inner_text()


def test_a_tab_goes_on_when_the_other_is_closed(server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url)
    ChatPage(page).ask(FOREVER)
    page.locator("[data-state=streaming] .markdown").wait_for()
    second = page.context.new_page()
    second.goto("/")
    second.get_by_text("Another tab receives this answer.").wait_for()
    page.close()
    chat = ChatPage(second)
    chat.stop.click()
    second.get_by_text("Stopped.", exact=True).wait_for()
