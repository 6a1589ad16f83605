"""Finds images in typed text: a terminal types the path of a file that the user drops on it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
_WORD = re.compile(r"""'[^']*'|"[^"]*"|(?:\\.|[^\s\\])+""")


def take_images(text: str) -> tuple[str, list[Path]]:
    """The text without the paths of image files that exist, and those paths."""
    found: list[Path] = []

    def take(word: re.Match[str]) -> str:
        path = path_of(word[0])
        if path.suffix.lower() not in SUFFIXES or not _is_file(path):
            return word[0]
        found.append(path)
        return ""

    rest = _WORD.sub(take, text)
    return (rest.strip() if found else text), found


def path_of(word: str) -> Path:
    """The path in a word as terminals type it: in quotes, with backslashes, or as a file: URL."""
    word = word.strip()
    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        word = word[1:-1]
    else:
        word = re.sub(r"\\(.)", r"\1", word)
    if word.startswith("file://"):
        word = unquote(urlsplit(word).path)
    return Path(os.path.expanduser(word))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
