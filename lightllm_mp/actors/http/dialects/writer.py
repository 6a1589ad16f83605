"""What a dialect of the API is: the form in which a route has promised an answer, and the writer of that form.

A client that comes back gets the rest in the same form, so the form is kept with the request. A writer's state is a
function of the form and the events: a new writer reads the events that the client has seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from msgspec import Struct

from lightllm_mp.actors.front.live_request import Answer, Event, LiveRequest
from lightllm_mp.actors.http import responses
from lightllm_mp.actors.http.live_group import LiveGroup
from lightllm_mp.errors import EngineError

WARNING = "X-LightLLM-Warning"


class AnswerForm(Struct, frozen=True, array_like=True, kw_only=True):
    """`ignored`: names of what the client sent and this server does not honour."""

    ignored: tuple[str, ...] = ()

    @property
    def streamed(self) -> bool:
        raise NotImplementedError

    @property
    def headers(self) -> dict[str, str]:
        return {WARNING: "ignored parameters: " + ", ".join(self.ignored)} if self.ignored else {}

    def writer(self, live: LiveRequest) -> AnswerWriter:
        raise NotImplementedError

    def group_writer(self, group: LiveGroup) -> AnswerWriter:
        """For APIs whose bodies hold several prompts."""
        raise NotImplementedError


class AnswerWriter(ABC):
    """Writes one answer, as a stream (`begin`, `events`, `end`) or whole."""

    def seen(self, events: Sequence[Event]) -> None:  # noqa: B027
        """The client has these events, the first ones, already."""

    def begin(self) -> bytes:
        """What a stream begins with."""
        return b""

    @abstractmethod
    def events(self, events: Sequence[Event], number: int) -> Iterator[bytes]:
        """Server-sent events, each to be written alone. `number`: of the first event, counted from 1."""

    def end(self) -> bytes:
        """What a stream ends with when all answers have finished."""
        return b""

    def failure(self, error: EngineError) -> bytes:
        """The event that ends a stream whose request fails."""
        return responses.failure_event(error)

    @abstractmethod
    def whole(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        """One JSON object, in pieces."""
