"""Runs a program in a terminal of fixed size, under tmux, and renders its screen as HTML."""

from __future__ import annotations

import contextlib
import html
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SGR = re.compile(r"\x1b\[([\d;]*)m|\x1b\[[\d;?]*[a-zA-Z]|\x1b\].*?(?:\x07|\x1b\\)|[\x0e\x0f]")
COLOURS = ["#45475a", "#f38ba8", "#a6e3a1", "#f9e2af", "#89b4fa", "#cba6f7", "#94e2d5", "#cdd6f4"]
BRIGHT = ["#7f849c", "#f5a3b7", "#b9f0b0", "#fbeabf", "#a6c8ff", "#d9c2fb", "#aaf0e2", "#ffffff"]
PAGE = """<!doctype html><meta charset="utf-8"><title>terminal</title><style>
body {{ margin: 0; width: max-content; background: #1e1e2e; }}
pre {{ margin: 0; padding: 16px 20px; color: #cdd6f4; font: 14px/1.35 "DejaVu Sans Mono", monospace; }}
</style><pre>{}</pre>"""


class TmuxMissing(Exception):
    """tmux is not installed."""


class Terminal:
    """A program on a screen of `columns` x `rows`."""

    def __init__(self, tmux: Sequence[str]) -> None:
        self._tmux = tmux

    def type(self, text: str, enter: bool = True) -> None:
        self._run("send-keys", "-l", text)
        if enter:
            self._run("send-keys", "Enter")

    def until(self, pattern: str, seconds: float = 60.0) -> str:
        """Waits until a regular expression matches the screen and returns it. TimeoutError after `seconds`."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, plain := SGR.sub("", screen := self.screen()), re.MULTILINE):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{pattern!r} did not come within {seconds:.0f} s; the screen shows:\n{plain}")
            time.sleep(0.1)
        return screen

    def screen(self) -> str:
        """Lines with their escape sequences."""
        return self._run("capture-pane", "-e", "-p", "-J").rstrip()

    def _run(self, *arguments: str) -> str:
        return subprocess.run(
            [*self._tmux, *arguments], check=True, capture_output=True, text=True, timeout=20, encoding="utf-8"
        ).stdout


@contextlib.contextmanager
def terminal(
    command: Sequence[str], *, columns: int = 100, rows: int = 30, environment: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """Runs the command on a screen of its own and hangs up at the end. Raises TmuxMissing."""
    if shutil.which("tmux") is None:
        raise TmuxMissing("tmux is not installed (Debian: apt-get install tmux)")
    settings = [part for name, value in (environment or {}).items() for part in ("-e", f"{name}={value}")]
    with tempfile.TemporaryDirectory() as folder:
        tmux = ["tmux", "-u", "-f", "/dev/null", "-S", str(Path(folder) / "tmux")]
        screen = Terminal(tmux)
        size = ["-x", str(columns), "-y", str(rows)]
        # `cat` keeps the screen after the program has ended.
        shown = f"{shlex.join(command)}; cat"
        screen._run("new-session", "-d", *size, *settings, shown, ";", "set-option", "status", "off")
        try:
            yield screen
        finally:
            screen._run("kill-server")


def to_html(screen: str) -> str:
    """A page with the screen's text in the styles and colours of its escape sequences."""
    style: dict[str, str] = {}
    parts, at = [], 0
    for found in SGR.finditer(screen):
        parts.append(_span(screen[at : found.start()], style))
        at = found.end()
        if found[1] is not None:
            _apply(style, [int(code or 0) for code in found[1].split(";")])
    parts.append(_span(screen[at:], style))
    return PAGE.format("".join(parts))


def _span(text: str, style: Mapping[str, str]) -> str:
    if not text or not style:
        return html.escape(text)
    rules = ";".join(f"{name}:{value}" for name, value in style.items())
    return f'<span style="{rules}">{html.escape(text)}</span>'


def _apply(style: dict[str, str], codes: list[int]) -> None:
    while codes:
        code = codes.pop(0)
        if code == 0:
            style.clear()
        elif code in (1, 2, 3, 4, 7):
            name, value = {
                1: ("font-weight", "bold"),
                2: ("opacity", ".65"),
                3: ("font-style", "italic"),
                4: ("text-decoration", "underline"),
                7: ("filter", "invert(1)"),
            }[code]
            style[name] = value
        elif code in (38, 48):
            style["color" if code == 38 else "background"] = _extended(codes)
        elif 30 <= code <= 37 or 90 <= code <= 97:
            style["color"] = (COLOURS if code < 90 else BRIGHT)[code % 10]
        elif 40 <= code <= 47 or 100 <= code <= 107:
            style["background"] = (COLOURS if code < 100 else BRIGHT)[code % 10]
        else:
            for name in {22: ("font-weight", "opacity"), 23: ("font-style",), 24: ("text-decoration",), 27: ("filter",),
                         39: ("color",), 49: ("background",)}.get(code, ()):  # fmt: skip
                style.pop(name, None)


def _extended(codes: list[int]) -> str:
    """The colour of `5;n` or `2;r;g;b`; takes these from the codes."""
    if codes[:1] == [2]:
        red, green, blue = codes[1:4]
        del codes[:4]
        return f"rgb({red},{green},{blue})"
    number = codes[1]
    del codes[:2]
    if number < 16:
        return (COLOURS + BRIGHT)[number]
    if number >= 232:
        return "rgb({0},{0},{0})".format(8 + 10 * (number - 232))
    number -= 16
    levels = [0, 95, 135, 175, 215, 255]
    return f"rgb({levels[number // 36]},{levels[number // 6 % 6]},{levels[number % 6]})"
