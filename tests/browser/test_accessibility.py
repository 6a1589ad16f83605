"""axe finds nothing, the keyboard is enough, and a phone's width, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser.axe import assert_accessible
from tests.browser.conftest import Visit
from tests.browser.scripted import GREETING, ScriptedServer
from tools.harness.chat_page import ChatPage

if TYPE_CHECKING:
    from playwright.sync_api import Page

NARROW = {"width": 360, "height": 640}
CUT = """() => {
  const found = [];
  const {clientWidth: width, scrollWidth: whole} = document.documentElement;
  if (whole > width) found.push(`the page is ${whole} wide`);
  for (const element of document.querySelectorAll("body *")) {
    const hidden = element.closest("[inert], .visually-hidden, .skip-link");
    if (hidden || !element.checkVisibility({visibilityProperty: true})) continue;
    let scrolls = false;
    for (let above = element; above; above = above.parentElement)
      scrolls ||= ["auto", "scroll"].includes(getComputedStyle(above).overflowX) && above.clientWidth <= width;
    const box = element.getBoundingClientRect();
    if (!scrolls && box.width && (box.left < -1 || box.right > width + 1)) found.push(element.outerHTML.slice(0, 150));
  }
  return found;
}"""
"""A script: what reaches over the edge of the window and cannot be scrolled to."""
SMALL = """() => [...document.querySelectorAll("button, a, select, input:not([type=checkbox]), summary")]
  .filter(one => one.checkVisibility() && !one.closest("[inert], .markdown"))
  .map(one => [one.getBoundingClientRect(), one])
  .filter(([box]) => box.width && (box.width < 24 || box.height < 24) && box.top >= 0)
  .map(([box, one]) => `${Math.round(box.width)} x ${Math.round(box.height)}: ${one.outerHTML.slice(0, 120)}`)"""
"""A script: targets smaller than WCAG 2.2 asks for (2.5.8)."""


def with_answers(page: Page) -> ChatPage:
    chat = ChatPage(page)
    for question in ("think", "call", "markdown"):
        chat.answer_to(question)
    chat.answers.last.locator("pre .hljs-keyword").first.wait_for()
    return chat


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(theme: str, server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url, color_scheme=theme, settings={"logprobs": True})
    ChatPage(page).box.wait_for()
    assert_accessible(page)
    chat = with_answers(page)
    chat.answers.locator("summary", has_text="tokens/s").last.click()
    chat.answers.locator("summary", has_text="Thought").click()
    assert_accessible(page)
    chat.press("Token probabilities")
    page.locator("[data-i='2']").hover()
    assert_accessible(page)
    chat.press("Edit message")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Form").select_option("JSON of a schema")
    page.get_by_label("JSON schema").fill("{")
    assert_accessible(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Export").click()
    page.get_by_role("dialog").wait_for()
    assert_accessible(page)


def test_a_phone_shows_everything(server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url, viewport=NARROW, has_touch=True)
    ChatPage(page).box.wait_for()
    assert page.evaluate(CUT) == []
    chat = with_answers(page)
    chat.answer_to("x" * 300)
    assert page.evaluate(CUT) == []
    assert page.evaluate(SMALL) == []
    for name in ("Settings", "Export"):
        page.get_by_role("button", name=name).first.click()
        page.get_by_role("dialog").wait_for()
        assert page.evaluate(CUT) == [], name
        assert page.evaluate(SMALL) == [], name
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="detached")
    page.get_by_role("button", name="Show conversations").click()
    page.get_by_role("button", name="New chat").wait_for()
    assert page.evaluate(CUT) == []
    assert_accessible(page)
    page.get_by_role("button", name="New chat").click()
    chat.questions.first.wait_for(state="detached")
    assert chat.answer_to("hello") == GREETING


FOCUSED = """() => {
  const now = document.activeElement;
  const {top, bottom, left, right} = now.getBoundingClientRect();
  const outlined = one => {
    const {outlineStyle, outlineWidth, boxShadow} = getComputedStyle(one);
    return (outlineStyle !== "none" && parseFloat(outlineWidth) > 0) || /rgb.* 0px 0px 0px [1-9]/.test(boxShadow);
  };
  return {
    name: now.getAttribute("aria-label") ?? now.textContent.trim().slice(0, 40),
    at: now === document.body ? "body" : now.localName,
    inside: bottom > 0 && right > 0 && top < innerHeight && left < innerWidth,
    visible: outlined(now) || outlined(now.closest(".composer-box, .search") ?? now),
  };
}"""


def tab_through(page: Page, most: int = 150) -> list[str]:
    """The names of what Tab comes to, once around from the top. All of it is on the screen, and looks focused."""
    names: list[str] = []
    top = False
    for _ in range(most):
        page.keyboard.press("Tab")
        found = page.evaluate(FOCUSED)
        if found["name"] == "Skip to content":
            if top:
                return names
            top = True
        if top and found["at"] != "body":
            assert found["inside"], found
            assert found["visible"], found
            names.append(found["name"])
    raise AssertionError(f"Tab does not come around: {names}")


def test_the_keyboard_is_enough(server: ScriptedServer, visit: Visit) -> None:
    """A whole chat without a mouse, in the order in which it stands on the screen."""
    page = visit(server.base_url)
    chat = ChatPage(page)
    chat.box.wait_for()
    names = tab_through(page)
    order = [names.index(one) for one in ("Chat", "Live", "Settings", "New chat", "Message")]
    assert order == sorted(order)
    page.keyboard.press("Control+Shift+O")
    page.wait_for_function("() => document.activeElement.id === 'prompt'")
    page.keyboard.type("markdown")
    page.keyboard.press("Enter")
    chat.questions.first.wait_for()
    chat.until_idle()
    assert page.evaluate("() => document.activeElement.id") == "prompt"
    names = tab_through(page)
    for name in ("Copy message", "Edit message", "Copy code", "Copy answer", "Regenerate", "Export"):
        assert name in names
    focus(page, "Regenerate")
    page.keyboard.press("Enter")
    chat.answers.get_by_text("2/2").wait_for()
    chat.until_idle()
    focus(page, "Edit message")
    page.keyboard.press("Enter")
    page.keyboard.type(" or not")
    page.keyboard.press("Control+Enter")
    chat.questions.get_by_text("markdown or not").wait_for()
    assert chat.whole_answer() == GREETING


def focus(page: Page, name: str, most: int = 60) -> None:
    """With Tab."""
    for _ in range(most):
        if page.evaluate(FOCUSED)["name"] == name:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not come to {name}")


def test_a_dialog_keeps_the_focus_and_gives_it_back(server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url)
    chat = ChatPage(page)
    chat.answer_to("hello")
    for name in ("Settings", "Export"):
        focus(page, name)
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name=name)
        dialog.wait_for()
        for _ in range(40):
            page.keyboard.press("Tab")
            inside = "() => !document.hasFocus() || document.activeElement === document.body || "
            assert page.evaluate(inside + "!!document.activeElement.closest('dialog')")
        page.keyboard.press("Escape")
        dialog.wait_for(state="detached")
        assert page.evaluate(FOCUSED)["name"] == name


def test_what_happens_is_said(server: ScriptedServer, visit: Visit) -> None:
    """A screen reader hears that an answer is there, not each of its tokens."""
    page = visit(server.base_url)
    chat = ChatPage(page)
    chat.answer_to("hello")
    said = page.locator("#announcer")
    said.filter(has_text="nswer").or_(said.filter(has_text=GREETING)).wait_for(state="attached")
    assert chat.answers.last.locator("[aria-live=assertive]").count() == 0


def test_larger_text_and_no_motion(server: ScriptedServer, visit: Visit) -> None:
    """At 200 % zoom of a small laptop's window, which is 640 pixels, nothing is cut; nothing moves by itself."""
    page = visit(server.base_url, viewport={"width": 640, "height": 400})
    with_answers(page)
    assert page.evaluate(CUT) == []
    assert page.evaluate("() => document.getAnimations().filter(one => one.playState === 'running').length") == 0
