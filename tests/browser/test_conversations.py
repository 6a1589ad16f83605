"""Conversations of the page: kept in the browser, copied, exported and imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.browser.answers import ANSWERS, MARKDOWN
from tests.browser.conftest import Visit
from tests.browser.scripted import GREETING, ScriptedEngine, ScriptedServer, scripted
from tools.harness.browser import INSECURE
from tools.harness.chat_page import ChatPage

if TYPE_CHECKING:
    from playwright.sync_api import Page


STORED = """wanted => new Promise((done, failed) => {
  const opening = indexedDB.open("lightllm-mp");
  opening.onerror = failed;
  opening.onsuccess = () => {
    const counting = opening.result.transaction("conversations").objectStore("conversations").count();
    counting.onsuccess = () => { opening.result.close(); done(counting.result === wanted); };
  };
})"""
"""A script: whether so many conversations are written down."""


def test_conversations_survive_a_reload(server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url)
    chat = ChatPage(page)
    chat.answer_to("The first question")
    page.get_by_role("button", name="New chat").click()
    chat.answer_to("The second question")
    page.reload()
    listed = page.get_by_role("complementary", name="Conversations").get_by_role("listitem")
    listed.nth(1).wait_for()
    assert listed.all_inner_texts() == ["The second question", "The first question"]
    chat.questions.get_by_text("The second question").wait_for()
    listed.nth(1).get_by_role("button", name="The first question", exact=True).click()
    chat.questions.get_by_text("The first question").wait_for()
    page.get_by_role("button", name="Rename The first question").click()
    page.get_by_role("textbox", name="New title").fill("Renamed")
    page.keyboard.press("Enter")
    page.get_by_role("searchbox", name="Search conversations").fill("second")
    page.get_by_role("button", name="Renamed", exact=True).wait_for(state="detached")
    listed.first.hover()
    page.get_by_role("button", name="Delete The second question").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.get_by_text("Nothing found.").wait_for()
    page.wait_for_function(STORED, arg=1)
    page.reload()
    page.get_by_role("button", name="Renamed", exact=True).wait_for()
    assert listed.count() == 1


def test_a_reload_in_the_middle_of_an_answer_loses_nothing(
    server: ScriptedServer, engine: ScriptedEngine, visit: Visit
) -> None:
    engine.pace = 0.05
    page = visit(server.base_url)
    chat = ChatPage(page)
    chat.ask("slow")
    chat.text.filter(has_text="It is").wait_for()
    page.reload()
    chat.text.filter(has_text="It is").wait_for()
    assert chat.whole_answer() == ANSWERS["slow"].strip()


def test_what_is_sent_before_the_database_is_open_is_kept(
    server: ScriptedServer, visit: Visit, expected_faults: list[str]
) -> None:
    expected_faults.append("status of 404")  # of the icon of a page that is none
    page = visit(server.base_url, "/healthz")
    page.add_init_script(
        """const open = indexedDB.open.bind(indexedDB);
        indexedDB.open = (...all) => {
          const slow = {};
          setTimeout(() => {
            const opening = open(...all);
            for (const name of ["onsuccess", "onerror", "onupgradeneeded"])
              opening[name] = event => slow[name]?.(event);
            for (const name of ["result", "error"]) Object.defineProperty(slow, name, {get: () => opening[name]});
          }, 500);
          return slow;
        };"""
    )
    page.goto("/")
    chat = ChatPage(page)
    assert chat.answer_to("hello") == GREETING
    page.reload()
    chat.text.filter(has_text=GREETING).wait_for()


def test_copies(server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url, permissions=["clipboard-read", "clipboard-write"])
    chat = ChatPage(page)
    chat.answer_to("markdown")
    chat.press("Copy answer")
    assert clipboard(page) == MARKDOWN
    chat.press("Copy code")
    assert clipboard(page).startswith("def add(a: int")
    chat.press("Copy message")
    assert clipboard(page) == "markdown"


def test_an_address_of_the_network_is_enough(visit: Visit, expected_faults: list[str]) -> None:
    """Without HTTPS and not on this machine, a browser has no clipboard, no locks and no random ids for the page."""
    expected_faults.append("Cross-Origin-Opener-Policy header has been ignored")
    with scripted(ScriptedEngine(answers=ANSWERS), allowed_host=(INSECURE,)) as server:
        page = visit(server.base_url.replace("127.0.0.1", INSECURE))
        chat = ChatPage(page)
        assert not page.evaluate("() => isSecureContext")
        assert chat.answer_to("hello") == GREETING
        chat.press("Copy answer")
        chat.box.focus()
        page.keyboard.press("Control+V")
        assert chat.box.input_value() == GREETING
        page.reload()
        chat.text.filter(has_text=GREETING).wait_for()


def clipboard(page: Page) -> str:
    return page.evaluate("() => navigator.clipboard.readText()")


def test_a_conversation_is_exported_and_imported(server: ScriptedServer, visit: Visit, tmp_path: Path) -> None:
    page = visit(server.base_url)
    chat = ChatPage(page)
    chat.answer_to("hello")
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as a file").click()
    assert download.value.suggested_filename == "hello.json"
    download.value.save_as(file := tmp_path / "hello.json")
    messages = sorted(json.loads(file.read_text())["messages"], key=lambda one: one["created"])
    assert [one["text"] for one in messages] == ["hello", GREETING]
    other = visit(server.base_url)
    other.get_by_label("File of a conversation").set_input_files(file)
    ChatPage(other).text.filter(has_text=GREETING).wait_for()
    other.get_by_label("File of a conversation").set_input_files(
        {"name": "a.json", "mimeType": "a/b", "buffer": b"[1]"}
    )
    other.get_by_text("This file is no conversation of this page.").wait_for()


def test_the_exported_programs_ask_the_same(server: ScriptedServer, engine: ScriptedEngine, visit: Visit) -> None:
    page = visit(server.base_url, settings={"temperature": "0.5", "top_k": "7", "seed": "1"})
    chat = ChatPage(page)
    question = """It's "$HOME" `x` \\ {"a": 1}\n'''é\u2028 end"""
    chat.answer_to(question)
    page.get_by_role("button", name="Export").click()
    page.get_by_role("button", name="curl").click()
    shown = page.get_by_role("region", name="curl")
    shown.filter(has_text="curl").wait_for()
    script = shown.inner_text()
    ended = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=20)
    assert json.loads(ended.stdout)["choices"][0]["message"]["content"] == GREETING
    page.get_by_role("button", name="Python").click()
    page.get_by_role("region", name="Python").wait_for()
    program = page.get_by_role("region", name="Python").filter(has_text="import").inner_text()
    assert run_without_openai(program, server.base_url) == GREETING
    assert engine.asked[-1] == engine.asked[-2] == engine.asked[-3] == [{"role": "user", "content": question}]
    assert engine.terms[-1].sampling == engine.terms[-2].sampling
    assert engine.terms[-1].sampling.top_k == 7


OPENAI = """
import json, types, urllib.request
class OpenAI:
    def __init__(self, base_url, api_key):
        self.url, self.chat = base_url + "/chat/completions", types.SimpleNamespace(completions=self)
    def create(self, extra_body={}, **body):
        request = urllib.request.Request(self.url, json.dumps({**body, **extra_body}).encode())
        reply = urllib.request.urlopen(request, timeout=10).read()
        return json.loads(reply, object_hook=lambda found: types.SimpleNamespace(**found))
"""
"""As much of the openai package as the program uses."""


def run_without_openai(program: str, base_url: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "openai.py").write_text(OPENAI)
        environment = {**os.environ, "PYTHONPATH": folder}
        command = [sys.executable, "-c", program]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()
