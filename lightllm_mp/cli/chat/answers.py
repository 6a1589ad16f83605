"""Sends the chat to the server and shows the answer while it streams."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

from lightllm_mp.cli.chat.conversation import Message
from lightllm_mp.cli.safe_text import printable
from lightllm_mp.client import Event, stream_chat
from lightllm_mp.errors import EngineError

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class ChatServer:
    """A chat server and how to reach it. `asked`: fields of every request, such as temperature."""

    def __init__(self, url: str, model: str, key: str = "", asked: dict[str, Any] | None = None) -> None:
        self.url = url
        self.model = model
        self.key = key
        self.asked = asked or {}
        self._timings = True

    def answer(self, messages: list[Message]) -> Iterator[Event]:
        """Yields the chunks of an answer, like `client.stream_chat`."""
        body = {"model": self.model, "messages": messages, "stream_options": {"include_usage": True}, **self.asked}
        if self._timings:
            try:
                yield from stream_chat(self.url, {**body, "return_timings": True}, key=self.key)
                return
            except EngineError as error:
                if error.status != 400 or "return_timings" not in error.message:
                    raise
            self._timings = False  # a server of another kind that does not know the field
        yield from stream_chat(self.url, body, key=self.key)


class Timing(NamedTuple):
    """Figures of one answer: number of tokens, tokens per second, milliseconds to the first token."""

    tokens: int
    rate: float
    first_ms: float

    def __str__(self) -> str:
        word = "token" if self.tokens == 1 else "tokens"
        return f"{self.tokens} {word}, {self.rate:.1f} tokens/s, first after {self.first_ms:.0f} ms"


class AnswerView:
    """Writes one answer to `out`. On a terminal reasoning is dimmed; elsewhere only the answer itself is written."""

    def __init__(self, out: TextIO, *, terminal: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.text = ""
        """The answer so far, as the model wrote it."""
        self.timing: Timing | None = None
        self.cut = False
        """The answer reached its limit of tokens."""
        self._out = out
        self._terminal = terminal
        self._clock = clock
        self._begin = clock()
        self._first = 0.0
        self._reasons = False
        self._begun = self._line_open = False

    def show(self, chunks: Iterator[Event]) -> None:
        """Show all chunks. After a KeyboardInterrupt `text` has what arrived; call `end` in any case."""
        for chunk in chunks:
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta") or {}
                self._write(delta.get("reasoning_content") or delta.get("reasoning") or "", reasoning=True)
                self._write(delta.get("content") or "", reasoning=False)
                self.cut = self.cut or choice.get("finish_reason") == "length"
            if chunk.get("usage") or chunk.get("timings"):
                self.timing = self._timing(chunk)

    def end(self) -> None:
        """Restore the terminal's style and end the line."""
        self._dim(False)
        if self._line_open:
            self._out.write("\n")
        self._line_open = False
        self._out.flush()

    @property
    def figures(self) -> str:
        """One line about the answer; empty if nothing is known."""
        told = [str(self.timing)] if self.timing else []
        return ", ".join(told + (["cut off: it may not be longer"] if self.cut else []))

    def _write(self, text: str, *, reasoning: bool) -> None:
        if not text:
            return
        self._first = self._first or self._clock()
        if not reasoning:
            self.text += text
        elif not self._terminal:
            return
        self._dim(reasoning)
        if not self._begun:
            text = text.lstrip("\n")  # templates put empty lines around reasoning
        if text:
            self._begun, self._line_open = True, not text.endswith("\n")
            self._out.write(printable(text))
            self._out.flush()

    def _dim(self, on: bool) -> None:
        if on == self._reasons:
            return
        self._reasons, self._begun = on, False
        if not on and self._line_open:
            self._out.write("\n")
            self._line_open = False
        self._out.write(DIM if on else PLAIN)

    def _timing(self, chunk: Event) -> Timing:
        """The server's own figures if the chunk has them, else figures by this clock."""
        told = chunk.get("timings") or {}
        now, first = self._clock(), self._first or self._clock()
        tokens = int(told.get("predicted_n") or (chunk.get("usage") or {}).get("completion_tokens") or 0)
        rate = told.get("predicted_per_second") or max(tokens - 1, 0) / max(now - first, 1e-3)
        return Timing(tokens, float(rate), float(told.get("ttft_ms") or (first - self._begin) * 1000))


def status(text: str) -> None:
    """Print a message of the command. It goes to standard error, so that a pipe gets only the answer."""
    dim = sys.stderr.isatty()
    print(f"{DIM}{printable(text)}{PLAIN}" if dim else printable(text), file=sys.stderr, flush=True)
