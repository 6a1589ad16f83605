"""Makes the images of docs/screenshots: the page, and terminals.

    python -m tools.screenshots [--only chat-light,start-up] [--out docs/screenshots]

Starts a server of the demo model with images and takes screenshots with a headless Chromium; tmux runs the terminals.
Each PNG has a palette and at most 150 kB.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import signal
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lightllm_mp import Server
from tools.harness.browser import BrowserMissing, chromium, new_context
from tools.harness.chat_page import ChatPage
from tools.harness.command_line import ToolParser, skip, words
from tools.harness.figures import say
from tools.harness.procfs import actors
from tools.harness.serving import serving
from tools.harness.terminal import Terminal, TmuxMissing, terminal, to_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 150_000
WIDE = {"width": 1200, "height": 760}
TALL = {"width": 1440, "height": 1240}
NARROW = {"width": 360, "height": 740}
QUESTIONS = ("What is the capital of France?", "Write a Python function that adds two numbers.")
GREEDY = """if (location.protocol === "http:")
  localStorage.setItem("lightllm-mp.settings", JSON.stringify({temperature: "0", max_tokens: "200"}))"""
PICTURE = ROOT / "examples" / "pair.png"


class Studio:
    """Opens pages of a server and writes images."""

    def __init__(self, browser: Browser, server: Server, out: Path, *, smoke: bool) -> None:
        self._browser, self.server, self._out, self.smoke = browser, server, out, smoke

    @contextlib.contextmanager
    def page(self, path: str = "/", **options: Any) -> Iterator[Page]:
        options = {"viewport": WIDE, "device_scale_factor": 1.5, **options}
        context, _ = new_context(self._browser, self.server.base_url, **options)
        context.add_init_script(GREEDY)
        try:
            page = context.new_page()
            page.goto(path)
            yield page
        finally:
            context.close()

    def save(self, name: str, png: bytes) -> None:
        """Stores a palette: a third of the bytes without a visible difference."""
        picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(192, dither=Image.Dither.NONE)
        picture.save(file := self._out / f"{name}.png", optimize=True)
        if (size := file.stat().st_size) > MOST_BYTES:
            raise SystemExit(f"{file} has {size:,} bytes, more than {MOST_BYTES:,}")
        say(f"{file}: {picture.width} x {picture.height}, {size / 1e3:.0f} kB")

    def save_screen(self, name: str, screen: str) -> None:
        """Writes the screen of a terminal."""
        with self.page("about:blank") as page:
            page.set_content(to_html(screen))
            self.save(name, page.locator("pre").screenshot())


@contextlib.contextmanager
def shell(**environment: str) -> Iterator[Terminal]:
    """A shell at its prompt that finds this checkout's `lightllm-mp`, which logs warnings only."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "lightllm-mp"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m lightllm_mp "$@"\n')
        program.chmod(0o755)
        (settings := Path(folder) / "settings").write_text(f"PS1='$ ' PATH={folder}:$PATH\n")
        command = ["bash", "--noprofile", "--rcfile", str(settings)]
        environment = {"PYTHONPATH": str(ROOT), "LIGHTLLM_MP_LOG_LEVEL": "warning", **environment}
        with terminal(command, columns=104, rows=30, environment=environment) as screen:
            screen.until(r"^\$")
            yield screen


def start_up(studio: Studio) -> None:
    """The block that `lightllm-mp serve` prints."""
    with shell(LIGHTLLM_MP_PORT="0" if studio.smoke else "8000") as screen:
        screen.type("lightllm-mp serve")
        studio.save_screen("start-up", screen.until(r"^  try +curl"))


def terminal_chat(studio: Studio) -> None:
    """`lightllm-mp chat` with the running server."""
    with shell() as screen:
        screen.type(f"lightllm-mp chat --url {studio.server.base_url} --temperature 0")
        screen.until(r"^> *$")
        for number, question in enumerate(QUESTIONS, 1):
            screen.type(question)
            screen.until(rf"(?s)(first after.*){{{number}}}> *$")
        studio.save_screen("terminal-chat", screen.screen())


def chat(name: str, **options: Any) -> Callable[[Studio], None]:
    """A conversation."""

    def shot(studio: Studio) -> None:
        with studio.page(**options) as page:
            shown = ChatPage(page)
            for question in QUESTIONS[: 1 if studio.smoke else 2]:
                shown.answer_to(question)
            studio.save(name, page.screenshot())

    return shot


def picture(studio: Studio) -> None:
    """An image and the demo's answer about it."""
    with studio.page() as page:
        ChatPage(page).answer_to("What is in the picture?", [PICTURE])
        studio.save("picture", page.screenshot())


def live(studio: Studio) -> None:
    """The engine with three running answers, and during the repair after its worker is killed."""
    url = f"{studio.server.base_url}/generate"
    bodies = [{"inputs": f"Count to {n}.", "parameters": {"max_new_tokens": 900, "ignore_eos": True}} for n in range(3)]
    with ThreadPoolExecutor() as pool, studio.page("/live", viewport=TALL, device_scale_factor=1.25) as page:
        answers = [pool.submit(fetch, url, body) for body in bodies]
        page.get_by_role("row").filter(has_text="decode").nth(2).wait_for()
        page.wait_for_timeout(0 if studio.smoke else 6000)  # plots
        studio.save("live", page.screenshot())
        os.kill(actors(studio.server.pid)["worker0"], signal.SIGKILL)
        page.locator("#live-state", has_text="Repairing").wait_for()
        studio.save("live-repair", page.screenshot())
        for answer in answers:
            answer.result()


def fetch(url: str, body: dict[str, Any]) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=300) as reply:
        return reply.read()


SHOTS: dict[str, Callable[[Studio], None]] = {
    "start-up": start_up,
    "terminal-chat": terminal_chat,
    "chat-light": chat("chat-light", color_scheme="light"),
    "chat-dark": chat("chat-dark", color_scheme="dark"),
    "chat-narrow": chat("chat-narrow", color_scheme="light", viewport=NARROW),
    "picture": picture,
    "live": live,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, only=["chat-light"], out=None)
    parser.add_argument("--only", type=words, default=list(SHOTS), help=f"some of {', '.join(SHOTS)}")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screenshots")
    flags = parser.parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        out = flags.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        try:
            with chromium() as browser, serving("--enable-multimodal", "--max-total-token-num", "8000") as server:
                studio = Studio(browser, server, out, smoke=flags.smoke)
                for name in flags.only:
                    SHOTS[name](studio)
        except (BrowserMissing, TmuxMissing) as missing:
            skip(str(missing))
    return 0


if __name__ == "__main__":
    sys.exit(main())
