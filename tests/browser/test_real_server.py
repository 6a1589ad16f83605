"""A real server behind the page: the demo that sees, whose processes are killed while somebody reads and watches."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lightllm_mp import Server
from tests.browser.axe import assert_accessible
from tests.browser.conftest import Visit
from tests.browser.test_accessibility import CUT, NARROW, tab_through
from tests.end_to_end.conftest import default_model
from tests.end_to_end.served import post
from tests.paths import ROOT
from tools.harness.chat_page import ChatPage
from tools.harness.procfs import actors
from tools.harness.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["default_model"]
PICTURE = ROOT / "examples" / "pair.png"
SEEN = "A green triangle left of a purple square."
LONG = "Write a Python function that adds two numbers."
TOKENS = 150
GREEDY = {"temperature": "0", "max_tokens": str(TOKENS)}
BROKEN = [r"Failed to load resource: net::ERR_", "status of 503"]
"""What the browser itself says on the console of a connection that breaks or is refused."""


@pytest.fixture(scope="module")
def server(default_model: Path) -> Iterator[Server]:
    with serving("--enable-multimodal", "--max-total-token-num", "8000", "--max-restarts", "100") as running:
        yield running


def test_the_first_question(server: Server, visit: Visit) -> None:
    chat = ChatPage(visit(server.base_url, settings=GREEDY))
    assert "Paris" in chat.answer_to("What is the capital of France?")
    chat.answers.locator("summary", has_text="tokens/s").click()
    stages = chat.answers.locator(".stages").inner_text()
    assert all(stage in stages for stage in ("Waiting", "Reading the prompt", "Answering"))


def by_file(chat: ChatPage) -> None:
    chat.page.get_by_label("Pictures", exact=True).set_input_files(PICTURE)


def by_event(kind: str) -> Callable[[ChatPage], None]:
    """As if the file were dropped, or came from the clipboard."""

    def attach(chat: ChatPage) -> None:
        chat.box.evaluate(
            """(box, [kind, data]) => {
              const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
              const files = new DataTransfer();
              files.items.add(new File([bytes], "pair.png", {type: "image/png"}));
              const options = {bubbles: true, cancelable: true, clipboardData: files, dataTransfer: files};
              if (kind === "paste") return box.dispatchEvent(new ClipboardEvent(kind, options));
              for (const step of ["dragenter", "dragover", "drop"]) box.dispatchEvent(new DragEvent(step, options));
            }""",
            [kind, base64.b64encode(PICTURE.read_bytes()).decode()],
        )

    return attach


@pytest.mark.parametrize("attach", [by_file, by_event("drop"), by_event("paste")], ids=["file", "drop", "paste"])
def test_a_picture_is_seen(attach: Callable[[ChatPage], None], server: Server, visit: Visit) -> None:
    page = visit(server.base_url, settings=GREEDY)
    chat = ChatPage(page)
    page.get_by_role("button", name="Add pictures").wait_for()
    attach(chat)
    page.get_by_role("img", name="pair.png").wait_for()
    assert SEEN in chat.answer_to("What is in the picture?")
    assert page.get_by_role("list", name="Pictures to send").count() == 0
    page.reload()
    chat.questions.get_by_role("img", name="pair.png").wait_for()
    chat.text.filter(has_text=SEEN).wait_for()


def test_json_of_a_schema_from_a_real_model(server: Server, visit: Visit) -> None:
    schema = '{"type": "object", "properties": {"capital": {"const": "Paris"}}, "required": ["capital"]}'
    page = visit(server.base_url, settings={**GREEDY, "format": "json_schema", "schema": schema})
    assert re.search(r'"capital":\s*"Paris"', ChatPage(page).answer_to("What is the capital of France?"))


def undisturbed(server: Server) -> str:
    body = {"messages": [{"role": "user", "content": LONG}], "temperature": 0, "max_tokens": TOKENS}
    answer = post(server, "/v1/chat/completions", body)["choices"][0]["message"]["content"]
    assert len(answer) > 200
    return answer


def ask_and_kill(server: Server, visit: Visit, name: str, seen: Callable[[], None]) -> str:
    """The answer on a page while a process is killed in the middle of it. `seen` looks at something else meanwhile."""
    page = visit(server.base_url, settings=GREEDY, permissions=["clipboard-read", "clipboard-write"])
    chat = ChatPage(page)
    chat.box.wait_for()
    chat.ask(LONG)
    chat.text.filter(has_text=re.compile(".{30}", re.DOTALL)).wait_for()
    os.kill(actors(server.pid)[name], signal.SIGKILL)
    assert page.locator("[data-state=streaming]").count() == 1
    seen()
    chat.until_idle()
    chat.press("Copy answer")
    return page.evaluate("() => navigator.clipboard.readText()")


def live(server: Server, visit: Visit, **options: object) -> Page:
    page = visit(server.base_url, "/live", **options)
    state(page, "Running")
    return page


def state(page: Page, name: str) -> None:
    page.locator("#live-state", has_text=name).wait_for()


def test_an_answer_outlives_http(server: Server, visit: Visit, expected_faults: list[str]) -> None:
    """The page comes back by itself; the text is that of an answer that nothing disturbs. The view comes back, too."""
    expected_faults += BROKEN
    watching = live(server, visit)
    assert ask_and_kill(server, visit, "http", lambda: None) == undisturbed(server)
    watching.locator("#live-notes").get_by_text(re.compile("http is ready|Connected again")).first.wait_for()
    state(watching, "Running")


def test_a_repair_is_watched(server: Server, visit: Visit, expected_faults: list[str]) -> None:
    expected_faults += BROKEN
    watching = live(server, visit, color_scheme="dark")
    worker = watching.locator("[data-actor=worker0]")
    before = actors(server.pid)["worker0"]

    def seen() -> None:
        state(watching, "Repairing")
        assert worker.get_attribute("data-state") != "ready"
        assert_accessible(watching)
        state(watching, "Running")

    assert ask_and_kill(server, visit, "worker0", seen) == undisturbed(server)
    assert worker.get_attribute("data-state") == "ready"
    assert "restart" in worker.inner_text()
    notes = watching.locator("#live-notes").inner_text()
    assert notes.index("serving again") < notes.index("worker0 was killed by SIGKILL")
    assert actors(server.pid)["worker0"] != before


def test_the_view_shows_a_request(server: Server, visit: Visit) -> None:
    page = live(server, visit, color_scheme="light")
    body = {"inputs": "Count.", "parameters": {"max_new_tokens": 4000, "ignore_eos": True}}
    asked = urllib.request.Request(server.base_url + "/generate_stream", json.dumps(body).encode())
    with urllib.request.urlopen(asked, timeout=60):
        page.get_by_role("row").filter(has_text="decode").wait_for()
        assert not page.locator("#live-kv-words").inner_text().startswith("0 in use")
        assert_accessible(page)
        page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Go on").click()
    page.get_by_text("No request is live.").wait_for()
    names = tab_through(page)
    assert names.index("Live") < names.index("Pause")


def test_the_view_on_a_phone(server: Server, visit: Visit) -> None:
    page = live(server, visit, viewport=NARROW, color_scheme="dark")
    page.locator("[data-actor=worker0]").wait_for()
    page.wait_for_timeout(1200)  # a second event, and plots
    assert page.evaluate(CUT) == []
    assert_accessible(page)
