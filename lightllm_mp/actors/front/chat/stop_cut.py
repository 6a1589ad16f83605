"""Cuts the stop string off an answer that ends with it, and says which one it was."""

from __future__ import annotations

from collections.abc import Sequence

from lightllm_mp.text.stop_strings import StopStrings


class StopCut:
    """Reads the text of one answer, in pieces, in which the engine left the stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = StopStrings(stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the text."""

    def cut(self, text: str, *, last: bool) -> str:
        """The text to show after this piece. `last`: no other piece follows."""
        if self.found is not None:
            return ""
        held, whole = len(self._held), self._held + text
        if match := self._stops.find(text):
            end, length = match
            begin = held + end - length
            self.found = whole[begin : held + end]
            return whole[:begin]
        show = len(whole) - (0 if last else self._stops.held)
        self._held = whole[show:]
        return whole[:show]
