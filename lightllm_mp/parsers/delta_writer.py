"""Collects the deltas that a parser finds between two pushes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from lightllm_mp.parsers.deltas import Content, Delta, Reasoning, ToolArguments, ToolCallBegin
from lightllm_mp.parsers.text_reader import Malformed, TextReader

_Text: TypeAlias = type[Content] | type[Reasoning]
_SPACES = " \t\r\n"
_NEWLINES = "\r\n"


class DeltaWriter:
    """Deltas of one answer. A call begins when its name and the first character of its arguments are known.

    White space around calls, around reasoning, and newlines between reasoning and content are dropped. White space at
    the end of text waits for what follows.
    """

    def __init__(self, reader: TextReader, call_ids: Callable[[int], str]) -> None:
        self._reader = reader
        self._call_ids = call_ids
        self._deltas: list[Delta] = []
        self._kind: _Text | None = Content
        """The kind of `_texts`. None: they are arguments of the last call."""
        self._texts: list[str] = []
        self._spaces: list[str] = []
        self._trim = ""
        """Characters to drop before the next text."""
        self._said: set[_Text] = set()
        self._calls = 0
        self._name: str | None = None
        self._id = ""
        self._early: list[str] = []
        """Arguments that came before the name."""
        self.begun = False
        """Whether the client knows the current call."""

    def take(self) -> list[Delta]:
        """The deltas since the last call of this method. Neighbours of one kind are joined."""
        self._join()
        deltas, self._deltas = self._deltas, []
        return deltas

    def content(self, text: str) -> None:
        self._spaced(Content, text)

    def reasoning(self, text: str) -> None:
        self._spaced(Reasoning, text)

    def begin_reasoning(self) -> None:
        self._spaces, self._trim = [], _SPACES

    def end_reasoning(self) -> None:
        self._spaces, self._trim = [], _NEWLINES

    def part(self, kind: _Text) -> None:
        """A new message begins: an empty line separates it from earlier text of its kind."""
        self._spaces, self._trim = (["\n\n"] if kind in self._said else []), ""

    def name(self, name: str, call_id: str = "") -> None:
        """Sets the current call's name, and its id if the model gives one. Malformed if the name is empty."""
        if not name:
            raise Malformed
        self._name, self._id = name, call_id
        if self._early:
            self._append("".join(self._early))

    def arguments(self, text: str) -> None:
        """A piece of the JSON text of the arguments, before or after the name."""
        if self._name is None:
            self._early.append(text)
        else:
            self._append(text)

    def end_call(self) -> None:
        """Ends the current call. Without arguments it gets an empty object. Malformed if it has no name."""
        if self._name is None:
            raise Malformed
        if not self.begun:
            self._append("{}")
        self.abandon_call()

    def abandon_call(self) -> None:
        """Ends the current call as it is. A call that has not begun is forgotten."""
        self._name, self._early, self.begun = None, [], False

    def finish(self) -> None:
        """Ends the text. White space at the end of content counts, except after a call."""
        if self._kind is Content and self._spaces:
            self._text(Content, "".join(self._spaces))

    def _append(self, text: str) -> None:
        assert self._name is not None
        if not self.begun:
            self._join()
            self._spaces, self._trim, self._kind = [], "", None
            call_id = self._id or self._call_ids(self._calls)
            self._deltas.append(ToolCallBegin(self._calls, self._name, call_id))
            self._calls += 1
            self._early, self.begun = [], True
        self._reader.record()  # the text that was read is handed on
        self._text(None, text)

    def _spaced(self, kind: _Text, text: str) -> None:
        if self._trim:
            text = text.lstrip(self._trim)
            if not text:
                return
            self._trim = ""
        shown = text.rstrip(_SPACES)
        if shown:
            self._said.add(kind)
            self._text(kind, "".join((*self._spaces, shown)))
            self._spaces = []
        if len(shown) < len(text):
            self._spaces.append(text[len(shown) :])

    def _text(self, kind: _Text | None, text: str) -> None:
        if kind is not self._kind:
            self._join()
            self._kind = kind
        self._texts.append(text)

    def _join(self) -> None:
        if self._texts:
            text, self._texts = "".join(self._texts), []
            self._deltas.append(ToolArguments(self._calls - 1, text) if self._kind is None else self._kind(text))
