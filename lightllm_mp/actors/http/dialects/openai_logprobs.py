"""Log-probabilities in OpenAI's forms."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from lightllm_mp.actors.front.live_request import SLICE, Event
from lightllm_mp.actors.http.responses import json_array
from lightllm_mp.messages import PromptLogprobs


def chat_logprobs(events: Iterable[Event]) -> list[dict[str, Any]]:
    """One entry per token: its text, logprob, bytes and alternatives."""
    return [
        _entry(token_text(event), event.logprob)
        | {"top_logprobs": [_entry(other.text, other.logprob) for other in event.top]}
        for event in events
        if event.id >= 0
    ]


def token_text(event: Event) -> str:
    """The token's own text if its alternatives give it; else the text that it added to the answer, which may be less or
    more if characters are split between tokens."""
    return next((other.text for other in event.top if other.id == event.id), event.text)


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class CompletionLogprobs:
    """Logprobs in the form of /v1/completions: columns of tokens, of which each has `top` alternatives and itself."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._offset = 0
        """Characters before the next token."""
        self.clear()

    def clear(self) -> None:
        """The columns so far were shown."""
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._best: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def prompt(self, piece: PromptLogprobs) -> None:
        """Add a piece of the prompt, with texts. Its first token has no logprob."""
        logprobs = array("f", piece.logprobs).tolist()
        top_logprobs = array("f", piece.top_logprobs).tolist()
        without, n = len(piece.texts) - len(logprobs), piece.top_n
        for i, text in enumerate(piece.texts):
            at = i - without
            if at < 0:
                self._add(text, text, None, None)
                continue
            some = range(n * at, n * at + min(n, self._top))
            best = {piece.top_texts[k]: top_logprobs[k] for k in some}
            self._add(text, text, logprobs[at], {text: logprobs[at]} | best)

    def answer(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.id >= 0:
                token = token_text(event)
                best = {other.text: other.logprob for other in event.top}
                self._add(token, event.text, event.logprob, {token: event.logprob} | best)
            else:
                self._offset += len(event.text)

    def json(self) -> Iterator[bytes]:
        columns = (
            (b'{"tokens":', self._tokens),
            (b',"token_logprobs":', self._logprobs),
            (b',"top_logprobs":', self._best),
            (b',"text_offset":', self._offsets),
        )
        for name, column in columns:
            yield name
            yield from json_array(column[first : first + SLICE] for first in range(0, len(column), SLICE))
        yield b"}"

    def _add(self, token: str, shown: str, logprob: float | None, best: dict[str, float] | None) -> None:
        self._tokens.append(token)
        self._logprobs.append(logprob)
        self._best.append(best)
        self._offsets.append(self._offset)
        self._offset += len(shown)
