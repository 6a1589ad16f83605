"""Reads a text that arrives in pieces. A parser is a generator over it, and yields whenever it needs the next piece.

What is read does not depend on where the text is split: a reader waits while more text could change what it finds. Text
that waits is no longer than a marker or MAX_TOKEN characters, so the cost is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
Parsing = Generator[None, None, T]
"""A parser at work. It yields when it needs more text, and returns a T."""
Sink = Callable[[str], object]
"""Takes text as it is read."""

MAX_TOKEN = 256
"""Longest name or number, in characters."""
_SPACES = re.compile(r"[ \t\n\r]*")


class Malformed(Exception):
    """The text is not of the expected form, or ends too early. Never leaves this package."""


class TextReader:
    """Text of which `at` characters are read. `ended`: no more comes."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._record: list[str] | None = None

    @property
    def at_end(self) -> bool:
        """All text is read, and no more comes."""
        return self.ended and self.at == len(self.text)

    def feed(self, text: str) -> None:
        self.text = self.text[self.at :] + text
        self.at = 0

    def record(self, read: str = "") -> None:
        """Records the text that is read from now on; `read` was read before."""
        self._record = [read]

    def recorded(self) -> str:
        """The text that was read since `record`. Ends the recording."""
        record, self._record = self._record, None
        return "".join(record or ())

    def take(self, count: int) -> str:
        """The next `count` characters, which must be there."""
        piece = self.text[self.at : self.at + count]
        self.at += count
        if self._record is not None:
            self._record.append(piece)
        return piece

    def peek(self) -> Parsing[str]:
        """The next character, not yet read; empty at the end."""
        return (yield from self.ahead(1))

    def ahead(self, count: int) -> Parsing[str]:
        """The next `count` characters, not yet read; fewer at the end."""
        while len(self.text) - self.at < count and not self.ended:
            yield
        return self.text[self.at : self.at + count]

    def spaces(self, sink: Sink | None = None) -> Parsing[str]:
        """Reads white space. Returns the character behind it, not yet read; empty at the end."""
        while True:
            found = _SPACES.match(self.text, self.at)
            assert found is not None
            if found.end() > self.at:
                piece = self.take(found.end() - self.at)
                if sink is not None:
                    sink(piece)
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            yield

    def starts(self, *literals: str) -> Parsing[str | None]:
        """Reads the longest of `literals` that the text goes on with, if it does."""
        longest = max(map(len, literals))
        while True:
            ahead = self.text[self.at : self.at + longest]
            if self.ended or not any(len(ahead) < len(word) and word.startswith(ahead) for word in literals):
                break
            yield
        found = max((word for word in literals if ahead.startswith(word)), key=len, default=None)
        if found is not None:
            self.take(len(found))
        return found

    def expect(self, *literals: str) -> Parsing[str]:
        """Reads one of `literals`, or Malformed. One that the end of the text cuts off is read, too."""
        found = yield from self.starts(*literals)
        if found is None:
            self._cut_off(*literals)
            raise Malformed
        return found

    def _cut_off(self, *literals: str) -> None:
        """Reads the rest of the text if it is the beginning of one of `literals`."""
        rest = self.text[self.at : self.at + max(map(len, literals))]
        if self.ended and self.at + len(rest) == len(self.text) and any(word.startswith(rest) for word in literals):
            self.take(len(rest))

    def token(self, pattern: re.Pattern[str]) -> Parsing[str]:
        """Reads what matches `pattern`, repeated characters of a class; empty if none. Malformed beyond MAX_TOKEN."""
        while True:
            found = pattern.match(self.text, self.at)
            end = found.end() if found else self.at
            if end - self.at > MAX_TOKEN:
                raise Malformed
            if end < len(self.text) or self.ended:
                return self.take(end - self.at)
            yield

    def name(self, pattern: re.Pattern[str], end: str) -> Parsing[str]:
        """Reads what matches `pattern` and the `end` behind it. Malformed if it is empty."""
        name = yield from self.token(pattern)
        yield from self.expect(end)
        if not name.strip():
            raise Malformed
        return name.strip()

    def until(self, markers: tuple[str, ...], sink: Sink) -> Parsing[str | None]:
        """Hands text to `sink` until one of `markers`. Reads and returns that; None at the end of the text."""
        search = _search(markers)
        while True:
            marker, begin = search.find(self.text, self.at)
            if begin < 0:
                begin = len(self.text) if self.ended else search.open_end(self.text, self.at)
            if begin > self.at:
                sink(self.take(begin - self.at))
            if marker:
                return self.take(len(marker))
            if self.ended:
                return None
            yield


def read_all(read: Callable[[TextReader, Sink], Parsing[None]], text: str) -> str:
    """The text that `read` hands on for a whole text. Malformed if it does not read all of it."""
    reader = TextReader()
    reader.feed(text)
    reader.ended = True
    pieces: list[str] = []
    next(read(reader, pieces.append), None)
    if not reader.at_end:
        raise Malformed
    return "".join(pieces)


class _Search:
    """Finds the first of some markers. None may lie within another, except at its end."""

    def __init__(self, markers: tuple[str, ...]) -> None:
        assert not any(one in other[:-1] for one in markers for other in markers)
        self._markers = markers
        self._first = frozenset(marker[0] for marker in markers)
        self._longest = max(map(len, markers), default=0)
        self._pattern = re.compile("|".join(map(re.escape, sorted(markers, key=len, reverse=True))) or r"(?!)")

    def find(self, text: str, at: int) -> tuple[str, int]:
        """The first marker from `at` on, and its begin; ("", -1) if there is none."""
        found = self._pattern.search(text, at)
        return (found[0], found.start()) if found else ("", -1)

    def open_end(self, text: str, at: int) -> int:
        """Where the longest end of `text` begins that more text may complete to a marker."""
        for begin in range(max(at, len(text) - self._longest + 1), len(text)):
            if text[begin] in self._first:
                end = text[begin:]
                if any(marker.startswith(end) for marker in self._markers):
                    return begin
        return len(text)


_search = lru_cache(maxsize=256)(_Search)
