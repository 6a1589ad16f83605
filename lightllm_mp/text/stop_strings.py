"""Finds stop strings in a text that arrives in pieces.

The match that ends first wins; of several that end at the same character, the longest. So the match depends only on the
text, not on its split into tokens, and is known as soon as the last character of the stop string arrives. The state of
a text is no longer than its longest stop string, and a sequence starts without preparation.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightllm_mp.errors import InvalidRequest

MAX_STOPS = 16
MAX_STOP_BYTES = 1024


def check_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """The stop strings without empty ones and duplicates.

    InvalidRequest if there are more than 16, or one is longer than 1 KiB.
    """
    unique = tuple(dict.fromkeys(stop for stop in stops if stop))
    if len(unique) > MAX_STOPS:
        raise InvalidRequest(f"there are {len(unique)} stop strings; at most {MAX_STOPS} are allowed", param="stop")
    if any(len(stop.encode("utf-8", "replace")) > MAX_STOP_BYTES for stop in unique):
        raise InvalidRequest(f"a stop string is longer than {MAX_STOP_BYTES} bytes", param="stop")
    return unique


class StopStrings:
    """The state of one text: its end that may be the beginning of a stop string, and must not be shown yet."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = check_stops(stops)
        self._first = frozenset(stop[0] for stop in self._stops)
        self._longest = max(map(len, self._stops), default=0)
        self._open = ""
        """The longest suffix of the text so far that is a proper prefix of a stop string."""

    @property
    def held(self) -> int:
        """Number of characters that must not be shown yet."""
        return len(self._open)

    def find(self, text: str) -> tuple[int, int] | None:
        """Reads on. Returns the end of the first match in `text`, and its length, which may exceed that end."""
        if not self._open and self._first.isdisjoint(text):
            return None  # the usual case
        seen = self._open + text
        matches = ((at + len(stop), -len(stop)) for stop in self._stops if (at := seen.find(stop)) >= 0)
        end, length = min(matches, default=(0, 0))
        if end:
            read, self._open = len(self._open), ""
            return end - read, -length
        self._open = self._suffix(seen)
        return None

    def _suffix(self, seen: str) -> str:
        for start in range(max(0, len(seen) - self._longest + 1), len(seen)):
            if seen[start] in self._first:
                suffix = seen[start:]
                if any(stop.startswith(suffix) for stop in self._stops):
                    return suffix
        return ""
