"""Makes a model's text harmless for a terminal: it shows characters and controls nothing."""

from __future__ import annotations

import unicodedata

KEPT = {"\n", "\t"}
PICTURES = 0x2400
"""The first of Unicode's symbols for the 32 control characters. Each shows a control character as one sign."""
DELETE, DELETE_PICTURE = "\x7f", "\u2421"
JOINERS = {"\u200c", "\u200d"}
"""Invisible characters that are kept: words in Persian and Indic scripts and emoji contain them."""


def printable(text: str) -> str:
    """`text` without any character that moves the cursor, changes colours, answers to the terminal or reorders text.

    A control character becomes its symbol. Every other character without a visible form (C1 controls, direction
    overrides, surrogates, ...) becomes the replacement character. Each character is converted alone, so a stream may be
    split anywhere.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(char: str) -> str:
    if char in KEPT or char in JOINERS:
        return char
    if char < " ":
        return chr(PICTURES + ord(char))
    if char == DELETE:
        return DELETE_PICTURE
    hidden = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "\ufffd" if hidden else char
