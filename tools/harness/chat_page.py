"""Drives the page's chat as a person or a screen reader does: by roles and names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


class ChatPage:
    def __init__(self, page: Page) -> None:
        self.page = page
        self.box = page.get_by_role("textbox", name="Message", exact=True)
        self.stop = page.get_by_role("button", name="Stop", exact=True)
        self.questions = page.get_by_role("article", name="You")
        self.answers = page.get_by_role("article", name="Assistant")

    def ask(self, question: str, pictures: Sequence[Path] = ()) -> None:
        """Sends the message; returns once it stands in the conversation."""
        if pictures:
            self.page.get_by_label("Pictures", exact=True).set_input_files(pictures)
            self.page.get_by_role("list", name="Pictures to send").get_by_role("img").nth(len(pictures) - 1).wait_for()
        before = self.questions.count()
        self.box.fill(question)
        self.box.press("Enter")
        self.questions.nth(before).wait_for()

    def answer_to(self, question: str, pictures: Sequence[Path] = ()) -> str:
        """Sends the message; returns the text of its whole answer."""
        self.ask(question, pictures)
        return self.whole_answer()

    def whole_answer(self) -> str:
        """The text of the last answer once no answer streams; empty if it has none."""
        self.until_idle()
        return self.text.inner_text() if self.text.count() else ""

    def until_idle(self) -> None:
        """Waits until no answer grows."""
        self.page.locator("[data-state=streaming]").first.wait_for(state="detached")

    def press(self, name: str) -> None:
        """The button of the last message that has one."""
        self.page.get_by_role("article").get_by_role("button", name=name, exact=True).last.click()

    @property
    def text(self) -> Locator:
        """The model's text in the last answer, without reasoning, buttons and figures."""
        return self.answers.last.locator(":scope > .markdown")
