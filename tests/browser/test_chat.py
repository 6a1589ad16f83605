"""A chat on the page, with an engine that says what the test writes down."""

from __future__ import annotations

import json
import re
import time

from tests.browser.answers import ANSWERS, TOOLS
from tests.browser.conftest import Visit
from tests.browser.scripted import FOREVER, GREETING, ScriptedEngine, ScriptedServer
from tools.harness.chat_page import ChatPage


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
