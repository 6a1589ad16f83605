"""Whatever the model says, and whatever comes in the place of its answer, stays text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.conftest import Visit
from tests.browser.hostile_texts import HOSTILE, LEFT_OVER, PWN
from tests.browser.scripted import GREETING, ScriptedEngine, ScriptedServer, scripted
from tools.harness.chat_page import ChatPage

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

TAG = f'<img src=x onerror="{PWN}">'
ANSWERS = {
    **HOSTILE,
    "thinks": f"<think>{TAG}\n\n[x](javascript:{PWN})</think>So it is.",
    "calls": f"<tool_call>{json.dumps({'name': TAG, 'arguments': {'a': TAG}})}</tool_call>",
}


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted(ScriptedEngine(answers=ANSWERS, pace=0.001)) as running:
        yield running


def scripts(page: Page) -> int:
    return page.evaluate("() => document.scripts.length")


def test_hostile_answers_stay_text(server: ScriptedServer, visit: Visit) -> None:
    """All in one conversation, so that what one leaves behind would meet the next."""
    page = visit(server.base_url)
    chat = ChatPage(page)
    known = scripts(page)
    for name in HOSTILE:
        chat.answer_to(name)
        assert page.evaluate(LEFT_OVER, known) == [], name
    page.reload()
    page.get_by_role("button", name="Show earlier messages").dispatch_event("click")
    chat.answers.nth(len(HOSTILE) - 1).wait_for()
    assert page.evaluate(LEFT_OVER, known) == []


@pytest.mark.parametrize("question", ["thinks", "calls"])
def test_hostile_thoughts_and_calls_stay_text(question: str, server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url)
    known = scripts(page)
    ChatPage(page).answer_to(question)
    for button in page.locator("article summary, article button[aria-expanded=false]").all():
        button.click()
    assert page.evaluate(LEFT_OVER, known) == []


def test_hostile_questions_stay_text(server: ScriptedServer, visit: Visit) -> None:
    """In the conversation, its title and the list of conversations."""
    page = visit(server.base_url)
    known = scripts(page)
    ChatPage(page).answer_to(TAG)
    assert page.evaluate(LEFT_OVER, known) == []
    assert page.locator("img[src=x]").count() == 0


def chunk(**choice: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, **choice}]}


END = chunk(delta={}, finish_reason="stop")
STREAMS: dict[str, list[Any]] = {
    "no choices": [{"choices": None}, {"choices": []}, {"choices": [None]}, {}, END],
    "content of other types": [chunk(delta={"content": wrong}) for wrong in (5, True, {"a": TAG}, [TAG], None)] + [END],
    "reasoning of other types": [chunk(delta={"reasoning_content": {"a": TAG}}), END],
    "no delta": [chunk(delta=None), chunk(), END],
    "far calls": [chunk(delta={"tool_calls": [{"index": 2**31, "function": {"name": TAG, "arguments": TAG}}]}), END],
    "named calls": [chunk(delta={"tool_calls": [{"index": "__proto__", "id": TAG, "function": None}]}), END],
    "calls of other types": [
        chunk(delta={"tool_calls": {"index": 0}}),
        chunk(delta={"tool_calls": [None, 5, TAG]}),
        END,
    ],
    "tokens": [
        chunk(
            delta={"content": "ab"},
            logprobs={
                "content": [{"token": TAG, "logprob": TAG, "top_logprobs": [{"token": TAG, "logprob": None}, None]}, 7]
            },
        ),
        END,
    ],
    "a reason": [chunk(delta={"content": "a"}, finish_reason=TAG)],
    "numbers": [END, {"choices": [], "usage": {"prompt_tokens": TAG, "completion_tokens": {"a": 1}}, "timings": [TAG]}],
    "an error": [chunk(delta={"content": "a"}), {"error": {"message": TAG, "code": TAG, "type": TAG}}],
    "an error of another type": [{"error": None}],
    "no object": [5, None, "text", [TAG]],
    "a prototype": [
        json.loads('{"__proto__": {"pwned": 1}, "choices": [{"delta": {"__proto__": {"pwned": 1}}}]}'),
        END,
    ],
}
"""name -> the data of its events"""


def fulfilled(events: str) -> Callable[[Route], None]:
    return lambda route: route.fulfill(content_type="text/event-stream", body=events)


def test_hostile_streams_do_not_break_the_page(
    server: ScriptedServer, visit: Visit, expected_faults: list[str]
) -> None:
    """An answer may be an error; the page lives, nothing becomes markup, and the next answer comes."""
    expected_faults.append("status of 404")  # it comes back to a stream that it cannot read, and there is none
    page = visit(server.base_url)
    known = scripts(page)
    chat = ChatPage(page)
    chat.box.wait_for()
    for name, events in STREAMS.items():
        data = "".join(f"id: {at}\ndata: {json.dumps(event)}\n\n" for at, event in enumerate(events, 1))
        page.route("**/v1/chat/completions", fulfilled(data + "data: [DONE]\n\n"), times=1)
        chat.answer_to(name)
        assert page.evaluate(LEFT_OVER, known) == [], name
    assert chat.answer_to("hello") == GREETING


WRONG: tuple[Any, ...] = (TAG, 5, None, True, [TAG], {"a": TAG}, [None], [[TAG]])


def messages(field: str) -> list[dict[str, Any]]:
    """A chain of messages, each with another wrong value in the field."""
    chain = []
    for number, wrong in enumerate(WRONG):
        message = {"id": f"m{number}", "parent": f"m{number - 1}" if number else None, "created": number, "text": "a"}
        role = "user" if field == "pictures" else "assistant"
        chain.append({**message, "role": role, "state": "done", "conversation": "c", field: wrong})
    return chain


FIELDS = "text reasoning reasoningMs calls tokens finish error stats json state request pictures role id parent created"
PICTURE = {"id": "p", "conversation": "c", "name": TAG, "width": TAG, "height": [TAG]}
ADDRESSES = ("data:image/png;base64,AA==", f"javascript:{PWN}", "http://evil.example/p.png", TAG)


def test_hostile_files_stay_text(server: ScriptedServer, visit: Visit) -> None:
    """Conversations that somebody was sent. A file may be refused; the page lives, also after a reload."""
    page = visit(server.base_url)
    known = scripts(page)
    pictures = [{**PICTURE, "data": address} for address in ADDRESSES]
    for field in FIELDS.split():
        about = {"id": "c", "title": field, "system": TAG, "created": 1, "updated": 1, "leaf": f"m{len(WRONG) - 1}"}
        file = {"format": "lightllm-mp conversation", "version": 1, "conversation": about, "pictures": pictures}
        text = json.dumps({**file, "messages": messages(field)}).encode()
        taken = {"name": "a.json", "mimeType": "application/json", "buffer": text}
        page.get_by_label("File of a conversation").set_input_files(taken)
        listed = page.get_by_role("button", name=field, exact=True)
        listed.or_(page.get_by_role("alert")).first.wait_for()
        assert page.evaluate(LEFT_OVER, known) == [], field
    page.reload()
    page.locator(".conversation-title").nth(9).wait_for()  # most are taken, without what is wrong
    for listed in page.locator(".conversation-title").all():
        listed.click()
        assert page.evaluate(LEFT_OVER, known) == []
    page.get_by_role("button", name="New chat").click()
    assert ChatPage(page).answer_to("hello") == GREETING
    assert page.evaluate(LEFT_OVER, known) == []


@pytest.mark.parametrize("status", [400, 413, 500])
def test_hostile_errors_stay_text(
    status: int, server: ScriptedServer, visit: Visit, expected_faults: list[str]
) -> None:
    expected_faults.append(f"status of {status}")
    page = visit(server.base_url)
    known = scripts(page)
    chat = ChatPage(page)
    chat.box.wait_for()
    body = json.dumps({"error": {"message": TAG, "type": TAG, "param": TAG, "code": TAG}})
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=status, body=body), times=1)
    chat.ask("hostile")
    page.get_by_text(TAG).first.wait_for()
    assert page.evaluate(LEFT_OVER, known) == []
    assert page.locator("img[src=x]").count() == 0


def test_a_hostile_server_name_stays_text(server: ScriptedServer, visit: Visit, expected_faults: list[str]) -> None:
    expected_faults.append("status of 404")  # of the icon of a page that is none
    page = visit(server.base_url, "/healthz")
    known = {"version": TAG, "model_name": TAG, "authentication": TAG, "takes_images": TAG, "max_body_bytes": TAG}
    page.route("**/get_server_info", lambda route: route.fulfill(json={**known, "facts": {"chat": TAG}}))
    page.goto("/")
    page.get_by_text(TAG).first.wait_for()
    assert page.locator("img").count() == 0
