"""The interface of a dialect: the form of an answer that a route has promised, and the writer of that form.

A client that comes back gets the rest in the same form, so the form is kept with the request. A writer's state is a
function of the form and the events: a new writer reads the events that the client has seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from msgspec import Struct

from lightllm_mp.actors.front.live_request import Answer, Event
from lightllm_mp.actors.http import responses
from lightllm_mp.errors import EngineError

WARNING = "X-LightLLM-Warning"


class AnswerForm(Struct, frozen=True, array_like=True, kw_only=True):
    """`ignored`: names of fields that the client sent and this server does not honour.

    Each form (forms.py) says whether it is `streamed`, and makes the `writer` of a request's answers.
    """

    ignored: tuple[str, ...] = ()

    @property
    def headers(self) -> dict[str, str]:
        return {WARNING: "ignored parameters: " + ", ".join(self.ignored)} if self.ignored else {}


class StreamableForm(AnswerForm, frozen=True):
    """Of an answer that the client may have as a stream."""

    stream: bool = False
    created: int = 0
    """Seconds since 1970."""
    model: str = ""
    numbered: bool = False
    """Events have ids: the client says that it reads them."""

    @property
    def streamed(self) -> bool:
        return self.stream


class AnswerWriter(ABC):
    """Writes one answer."""

    @abstractmethod
    def whole(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        """One JSON object, in pieces."""


class StreamWriter(AnswerWriter):
    """Writes one answer, whole or as a stream: `begin`, `events`, `end`."""

    def seen(self, events: Sequence[Event]) -> None:
        """Takes the first events, which the client has already."""

    def begin(self) -> bytes:
        """The beginning of a stream."""
        return b""

    @abstractmethod
    def events(self, events: Sequence[Event], number: int) -> Iterator[bytes]:
        """Server-sent events, each to be written alone. `number`: of the first event, counted from 1."""

    def end(self) -> bytes:
        """The end of a stream when all answers have finished."""
        return b""

    def failure(self, error: EngineError) -> bytes:
        """The event that ends a stream whose request fails."""
        return responses.failure_event(error)
