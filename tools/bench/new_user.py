"""Measures a new user's time from a fresh clone to the first answer in the browser, by the README's command.

    python -m tools.bench.new_user [--source URL] [--folder DIR] [--question TEXT] [--json FILE]

Clones the repository into a new folder, runs `bash scripts/dev.sh serve` there, opens the address that the server
prints in a headless Chromium, and asks. The caches of pip and the distribution are used; the output says so, since
downloads are most of a first run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools.harness.browser import BrowserMissing, chromium, new_context
from tools.harness.chat_page import ChatPage
from tools.harness.command_line import ToolParser, skip
from tools.harness.figures import Figures

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = re.compile(r"^\s+url\s+(http\S+)", re.MULTILINE)
OWN = ("PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV")
"""Variables of this tool's environment that a new user does not have."""


class Clock:
    """Adds a figure for each stage, and one for all of them."""

    def __init__(self, figures: Figures) -> None:
        self._figures, self._begin = figures, time.monotonic()
        self._last = self._begin

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self._figures.add(stage, now - self._last, "s", since_begin=round(now - self._begin, 2))
        self._last = now


@contextlib.contextmanager
def started(command: Sequence[str], folder: Path, clock: Clock) -> Iterator[str]:
    """Yields the address that the server prints; at the end stops the server and all its processes."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    log = ""
    try:
        while not (found := ADDRESS.search(log)):
            if not (line := process.stderr.readline()):
                raise RuntimeError(f"{' '.join(command)} ended with {process.wait()}:\n{log}")
            log += line
            if "installed in" in line:
                clock.lap("dev.sh prepares .venv")
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


GREEDY = """localStorage.setItem("lightllm-mp.settings", '{"temperature": "0"}')"""
"""The page draws tokens by default, and a drawn answer may be of any length."""


def chat(browser: Browser, base_url: str, question: str, clock: Clock) -> str:
    """The model's answer."""
    context, _ = new_context(browser, base_url)
    context.add_init_script(GREEDY)
    page = context.new_page()
    page.goto("/")
    shown = ChatPage(page)
    shown.box.wait_for()
    clock.lap("the page can be typed into")
    shown.ask(question)
    shown.text.filter(has_text=re.compile(r"\w")).wait_for()
    clock.lap("first words of the answer")
    answer = shown.whole_answer()
    clock.lap("the whole answer")
    context.close()
    return answer


def cached() -> str:
    """The packages that pip finds on this machine."""
    known = subprocess.run([sys.executable, "-m", "pip", "cache", "info"], capture_output=True, text=True)
    sizes = re.findall(r"size: (.+)", known.stdout)
    return ", ".join(sizes) or "nothing"


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__)
    parser.add_argument("--source", default=str(ROOT), help="what is cloned")
    parser.add_argument("--folder", type=Path, help="where to; a temporary folder if none is named")
    parser.add_argument("--question", default="What is the capital of France?")
    parser.add_argument("--json", type=Path, help="file for the figures")
    flags = parser.parse(argv)
    figures = Figures()
    folder = flags.folder or Path(tempfile.mkdtemp(prefix="new-user-"))
    try:
        with chromium() as browser:
            clock = Clock(figures)
            command = ["bash", "scripts/dev.sh", "serve", "--port", "0"]
            if flags.smoke:  # from this checkout as installed
                folder.rmdir()
                folder.symlink_to(ROOT)
                command = [sys.executable, "-m", "lightllm_mp", "serve", "--port", "0"]
            else:
                subprocess.run(["git", "clone", "--quiet", flags.source, str(folder)], check=True)
                clock.lap("git clone")
            with started(command, folder, clock) as base_url:
                clock.lap("the server is ready")
                answer = chat(browser, base_url, flags.question, clock)
            figures.add("from the command to the answer", time.monotonic() - clock._begin, "s")
    except BrowserMissing as missing:
        skip(str(missing))
    finally:
        if not flags.folder:
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    figures.table()
    print(f"\n{flags.question}\n{answer}\n\nIn pip's cache were {cached()}.")
    figures.write(flags.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
