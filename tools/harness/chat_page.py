"""The page's chat, as somebody uses it who sees it or hears it read: by roles and names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


class ChatPage:
    def __init__(self, page: Page) -> None:
        self.page = page
        self.box = page.get_by_role("textbox", name="Message")
        self.stop = page.get_by_role("button", name="Stop")
        self.answers = page.get_by_role("article", name=re.compile("^Answer"))
        self.questions = page.get_by_role("article", name=re.compile("^You"))

    def ask(self, question: str, pictures: Sequence[Path] = ()) -> None:
        """Send it; do not wait for an answer."""
        if pictures:
            self.page.locator("input[type=file]").set_input_files(pictures)
        self.box.fill(question)
        self.box.press("Enter")

    def answer_to(self, question: str, pictures: Sequence[Path] = ()) -> str:
        """Send it; the text of its answer, once it is whole."""
        self.ask(question, pictures)
        return self.whole_answer()

    def whole_answer(self) -> str:
        """The text of the last answer, once nothing streams any more."""
        self.until_idle()
        return self.text.inner_text()

    def until_idle(self) -> None:
        self.answers.last.wait_for()
        self.stop.wait_for(state="detached")

    @property
    def text(self) -> Locator:
        """What the model said in the last answer, without buttons and figures around it."""
        return self.answers.last.locator(".text")
