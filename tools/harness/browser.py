"""A headless Chromium, and a record of faults on its pages."""

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
"""Seconds that a busy machine gets for an immediate reaction of a page."""
INSECURE = "page.test"
"""A name of this machine that the browser trusts less than 127.0.0.1: it disables some functions."""
NAMES = f"MAP {INSECURE} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


class BrowserMissing(Exception):
    """Playwright or Chromium is not installed; the message names it."""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser process that ends with the block. It resolves no other host. Raises BrowserMissing."""
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
    """Faults of a page: errors and warnings on the console (such as a violation of the Content-Security-Policy),
    uncaught exceptions, requests to other hosts, unexpected dialogs."""

    def __init__(self, context: BrowserContext, base_url: str) -> None:
        self.found: list[str] = []
        self._host = urlsplit(base_url).netloc
        context.on("console", self._on_console)
        context.on("weberror", self._on_error)
        context.on("request", self._on_request)
        context.on("dialog", self._on_dialog)

    def besides(self, expected: Sequence[str]) -> list[str]:
        """The faults that match no regular expression of `expected`."""
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
    """A context without storage or animations, and its faults. `options` are those of Browser.new_context."""
    context = browser.new_context(**{"base_url": base_url, "locale": "en-US", "reduced_motion": "reduce", **options})
    context.set_default_timeout(PATIENCE * 1e3)
    return context, Faults(context, base_url)
