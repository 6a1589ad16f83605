"""A headless Chromium, and everything on its pages that must not happen."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Request, WebError

PATIENCE = 20.0
"""Seconds that a busy machine has for what a page does at once."""
INSECURE = "page.test"
"""A name of this machine that the browser does not trust as it trusts 127.0.0.1: some of its functions are missing."""
NAMES = f"MAP {INSECURE} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


class BrowserMissing(Exception):
    """Playwright or Chromium is not installed; the message says which."""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser process that ends with the block. It knows no host but this one. Raises BrowserMissing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise BrowserMissing("Playwright is not installed (pip install playwright)") from error
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise BrowserMissing("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[f"--host-resolver-rules={NAMES}"])
        try:
            yield browser
        finally:
            browser.close()


class Faults:
    """What a page has done that it must not: errors and warnings on the console (a violation of the
    Content-Security-Policy is one), uncaught exceptions, requests to other hosts, dialogs that nobody asked for."""

    def __init__(self, context: BrowserContext, base_url: str) -> None:
        self.found: list[str] = []
        self._host = urlsplit(base_url).netloc
        context.on("console", self._on_console)
        context.on("weberror", self._on_error)
        context.on("request", self._on_request)
        context.on("dialog", self._on_dialog)

    def besides(self, expected: Sequence[str]) -> list[str]:
        """Those that no regular expression of `expected` finds."""
        return [fault for fault in self.found if not any(re.search(pattern, fault) for pattern in expected)]

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.found.append(f"console {message.type}: {message.text}")

    def _on_error(self, error: WebError) -> None:
        self.found.append(f"exception: {error.error}")

    def _on_request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.netloc != self._host:
            self.found.append(f"request to another host: {request.url}")

    def _on_dialog(self, dialog: Dialog) -> None:
        self.found.append(f"dialog: {dialog.message}")
        dialog.dismiss()


def new_context(browser: Browser, base_url: str, **options: Any) -> tuple[BrowserContext, Faults]:
    """A context with nothing stored whose pages hurry, and its faults. `options` are Browser.new_context's."""
    context = browser.new_context(**{"base_url": base_url, "locale": "en-US", "reduced_motion": "reduce", **options})
    context.set_default_timeout(PATIENCE * 1e3)
    return context, Faults(context, base_url)
