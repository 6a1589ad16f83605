"""No character of a model's text does anything to a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from lightllm_mp.cli.safe_text import printable


@given(st.text(st.characters()))
def test_each_character_is_harmless_and_stands_for_itself(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert printable(shown) == shown
    assert shown == "".join(map(printable, text))
    kinds = {unicodedata.category(char) for char in shown if char not in "\n\t\u200c\u200d"}
    assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    shown.encode()


def test_text_stays() -> None:
    for text in ("plain\n\ttext", "Grüße, 你好, नमस्ते, שלום, 👩\u200d🔬, می\u200cخواهم", ""):
        assert printable(text) == text
    assert printable("\x1b[31m\x00\r\x7f\x9b\u202e") == "␛[31m␀␍␡\ufffd\ufffd"
