"""A chat on the page, with an engine that says what the test writes down."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import Visit
from tests.browser.scripted import FOREVER, GREETING, ScriptedEngine, ScriptedServer, scripted
from tools.harness.chat_page import ChatPage

if TYPE_CHECKING:
    from playwright.sync_api import Page

MARKDOWN = """# A heading

Some **bold**, *slanted* and `code`, and a [link](https://example.org/a?b=c).

```python
def add(a: int, b: int) -> int:
    return a + b
```

| planet | moons |
|:-------|------:|
| Mars   |     2 |

The formula $a^2 + b^2 = c^2$ is old, and so is

$$\\int_0^1 x\\,dx = \\frac{1}{2}$$

1. one
2. two
"""
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
TOOLS = '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]'
ANSWERS = {
    "markdown": MARKDOWN,
    "think": "<think>Hm, well.\n\nLet me see.</think>So it is.",
    "call": CALL,
    "Sunny, 21 °C": "It is sunny in Paris.",
    "slow": "It is a long way. " * 12,
    "Hello": ", dear reader.",
    "json": '{"country":"France","capital":"Paris"}',
}


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted(ScriptedEngine(answers=ANSWERS)) as running:
        yield running


@pytest.fixture
def engine(server: ScriptedServer) -> Iterator[ScriptedEngine]:
    engine = server.engine
    assert isinstance(engine, ScriptedEngine)
    pace = engine.pace
    yield engine
    engine.pace, engine.answers = pace, ANSWERS


def test_an_answer_streams(server: ScriptedServer, engine: ScriptedEngine, visit: Visit) -> None:
    engine.pace = 0.05
    chat = ChatPage(visit(server.base_url))
    chat.ask("slow")
    chat.text.filter(has_text="It is").wait_for()
    early = chat.text.inner_text()
    assert chat.page.get_by_role("article", name="Assistant").get_attribute("aria-busy") == "true"
    assert chat.whole_answer() == ANSWERS["slow"].strip()
    assert len(early) < len(ANSWERS["slow"]) / 2
    summary = chat.answers.locator("summary", has_text="tokens/s")
    assert re.search(r"first token .+ · \d+ tokens", summary.inner_text())
    summary.click()
    chat.answers.get_by_text("Answering").wait_for()


def test_markdown_becomes_elements(server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url)
    chat = ChatPage(page)
    chat.answer_to("markdown")
    answer = chat.answers.last
    assert answer.get_by_role("heading", name="A heading").count() == 1
    assert answer.locator("strong").inner_text() == "bold"
    assert answer.get_by_role("cell").all_inner_texts() == ["Mars", "2"]
    assert answer.get_by_role("listitem").all_inner_texts() == ["one", "two"]
    link = answer.get_by_role("link", name="link")
    assert link.get_attribute("href") == "https://example.org/a?b=c"
    assert "noopener" in (link.get_attribute("rel") or "")
    answer.locator("pre .hljs-keyword", has_text="def").wait_for()
    assert answer.locator("math").count() == 2
    assert answer.locator("math mfrac").bounding_box()


def test_stop_keeps_what_there_is_and_frees_the_engine(
    server: ScriptedServer, engine: ScriptedEngine, visit: Visit
) -> None:
    chat = ChatPage(visit(server.base_url))
    chat.ask(FOREVER)
    chat.text.filter(has_text="20é").wait_for()
    chat.stop.click()
    assert "20é" in chat.whole_answer()
    chat.answers.get_by_text("Stopped.").wait_for()
    deadline = time.monotonic() + 10
    while engine.running:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert chat.answer_to("hello") == GREETING


def test_a_question_is_edited_and_both_versions_stay(server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url)
    chat = ChatPage(page)
    chat.answer_to("json")
    chat.press("Edit message")
    box = page.get_by_role("textbox", name="Your message")
    assert box.input_value() == "json"
    box.fill("call it off")
    box.press("Control+Enter")
    chat.questions.get_by_text("2/2").wait_for()
    assert chat.whole_answer() == GREETING
    chat.questions.get_by_role("button", name="Previous version").click()
    chat.text.filter(has_text="France").wait_for()
    page.reload()
    chat.text.filter(has_text="France").wait_for()
    chat.questions.get_by_role("button", name="Next version").click()
    chat.text.filter(has_text=GREETING).wait_for()


def test_an_answer_is_regenerated(server: ScriptedServer, engine: ScriptedEngine, visit: Visit) -> None:
    chat = ChatPage(visit(server.base_url))
    chat.answer_to("tell me")
    engine.answers = {"tell me": "Something else."}
    chat.press("Regenerate")
    chat.answers.get_by_text("2/2").wait_for()
    assert chat.whole_answer() == "Something else."
    assert engine.asked[-1] == engine.asked[-2] == [{"role": "user", "content": "tell me"}]
    chat.press("Previous version")
    chat.text.filter(has_text=GREETING).wait_for()


def test_reasoning_is_folded(server: ScriptedServer, visit: Visit) -> None:
    chat = ChatPage(visit(server.base_url))
    assert chat.answer_to("think") == "So it is."
    thoughts = chat.answers.get_by_text("Let me see.")
    assert not thoughts.is_visible()
    chat.answers.locator("summary", has_text="Though").click()
    assert thoughts.is_visible()


def test_calls_are_shown_and_answered(server: ScriptedServer, engine: ScriptedEngine, visit: Visit) -> None:
    page = visit(server.base_url, settings={"tools": TOOLS})
    chat = ChatPage(page)
    chat.answer_to("call")
    calls = page.get_by_role("list", name="Tool calls")
    assert calls.locator("code").inner_text() == "weather"
    assert json.loads(calls.locator("pre").inner_text()) == {"city": "Paris"}
    page.get_by_label("Result of weather").fill("Sunny, 21 °C")
    page.get_by_role("button", name="Send results").click()
    chat.text.filter(has_text="It is sunny in Paris.").wait_for()
    called, result = engine.asked[-1][-2:]
    assert called["tool_calls"][0]["id"] == result["tool_call_id"]


def test_json_of_a_schema(server: ScriptedServer, engine: ScriptedEngine, visit: Visit) -> None:
    page = visit(server.base_url)
    chat = ChatPage(page)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Form").select_option("JSON of a schema")
    schema = page.get_by_label("JSON schema")
    schema.fill('{"type": "object"')
    page.get_by_text("This is not JSON").wait_for()
    schema.fill('{"type": "object", "required": ["capital"]}')
    page.get_by_role("button", name="Done").click()
    chat.answer_to("json")
    assert json.loads(chat.text.locator("pre").inner_text()) == json.loads(ANSWERS["json"])
    guide = engine.terms[-1].guide
    assert guide is not None
    assert "capital" in str(guide)


def test_settings_reach_the_engine(server: ScriptedServer, engine: ScriptedEngine, visit: Visit) -> None:
    page = visit(server.base_url)
    chat = ChatPage(page)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Of this conversation").fill("Answer like a pirate.")
    page.get_by_label("Temperature").fill("3")
    page.get_by_text("This can be at most 2.").wait_for()
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Longest answer").fill("2")
    page.get_by_label("Seed").fill("7")
    page.keyboard.press("Escape")
    chat.answer_to("hello")
    chat.answers.get_by_text("longest length").wait_for()
    assert engine.asked[-1][0] == {"role": "system", "content": "Answer like a pirate."}
    sampling = engine.terms[-1].sampling
    assert (sampling.temperature, sampling.max_new_tokens, sampling.seed) == (0.5, 2, 7)


def test_an_answer_that_was_too_short_goes_on(server: ScriptedServer, engine: ScriptedEngine, visit: Visit) -> None:
    page = visit(server.base_url, settings={"max_tokens": "1"})
    chat = ChatPage(page)
    assert chat.answer_to("hello") == "Hello"
    chat.press("Continue")
    chat.text.filter(has_text="Hello, de").wait_for()
    assert engine.asked[-1][-1] == {"role": "assistant", "content": "Hello"}
    chat.until_idle()
    assert chat.answers.count() == 1


def test_token_probabilities(server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url)
    chat = ChatPage(page)
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("checkbox", name="Token probabilities").check()
    page.get_by_role("button", name="Done").click()
    chat.answer_to("hello")
    chat.press("Token probabilities")
    tokens = page.get_by_role("group", name="Tokens and their probabilities")
    assert tokens.inner_text() == GREETING
    tokens.locator("[data-i='1']").hover()
    tip = chat.answers.get_by_role("status")
    assert "one" in tip.inner_text()
    assert "77.9 %" in tip.inner_text()  # exp(-0.25)
    tokens.focus()
    page.keyboard.press("End")
    assert "60.7 %" in tip.inner_text()  # exp(-0.5)


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
    page.get_by_role("button", name="Delete The second question").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.get_by_text("Nothing found.").wait_for()
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
