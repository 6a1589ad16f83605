"""What a model writes, made harmless for a terminal: it can show text, and nothing else."""

from __future__ import annotations

import unicodedata

KEPT = {"\n", "\t"}
PICTURES = 0x2400
"""Unicode's pictures of the 32 control characters begin here: escape is shown as one sign."""
DELETE, DELETE_PICTURE = "\x7f", "\u2421"
JOINERS = {"\u200c", "\u200d"}
"""Parts of words in Persian and Indic scripts, and of emoji."""


def printable(text: str) -> str:
    """`text` without any character that moves the cursor, changes colours, answers to the terminal or reorders text.

    A control character becomes its picture, every other one that has no look of its own (C1 controls, direction
    overrides, surrogates, ...) the replacement character. Each character stands for itself: a stream may be split
    anywhere.
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
