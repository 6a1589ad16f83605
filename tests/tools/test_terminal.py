"""The screen of a program as the docs show it."""

from __future__ import annotations

import pytest

from tools.harness.terminal import TmuxMissing, terminal, to_html


@pytest.mark.parametrize(
    ("screen", "drawn"),
    [
        ("a < b", "<pre>a &lt; b</pre>"),
        ("\x1b[1;31mred\x1b[0m.", '<pre><span style="font-weight:bold;color:#f38ba8">red</span>.</pre>'),
        ("\x1b[1mx\x1b[22my", '<pre><span style="font-weight:bold">x</span>y</pre>'),
        ("\x1b[38;2;1;2;3mx\x1b[39my", '<pre><span style="color:rgb(1,2,3)">x</span>y</pre>'),
        ("\x1b[48;5;196mx\x1b[m", '<pre><span style="background:rgb(255,0,0)">x</span></pre>'),
        ("\x1b[38;5;250mx", '<pre><span style="color:rgb(188,188,188)">x</span></pre>'),
        ("\x1b]8;;https://x\x1b\\link\x1b]8;;\x1b\\\x1b[2K", "<pre>link</pre>"),
    ],
)
def test_colours_and_markup(screen: str, drawn: str) -> None:
    assert to_html(screen).endswith(drawn)


def test_a_program_is_typed_to_and_ends_with_its_screen() -> None:
    try:
        with terminal(["sh", "-c", "read x; printf '\\033[1mgot %s\\033[0m' \"$x\""], columns=40, rows=5) as screen:
            screen.type("it's 5 < 6")
            assert "\x1b[1mgot it's 5 < 6" in screen.until("^got")
            with pytest.raises(TimeoutError, match="screen shows"):
                screen.until("nothing", seconds=0.1)
    except TmuxMissing as missing:
        pytest.skip(str(missing))
