"""LightLLM's answers: one event per token, or one JSON object; see `responses`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from lightllm_mp.actors.front.live_request import Answer, Event, LiveRequest
from lightllm_mp.actors.http import responses
from lightllm_mp.actors.http.dialects.writer import AnswerForm, StreamWriter


class NativeForm(AnswerForm, frozen=True, tag="native"):
    """`details`, `logprobs`: what a whole answer shows beside its texts."""

    kind: Literal["stream", "whole", "score"] = "whole"
    details: bool = False
    logprobs: bool = False
    raw: bool = True
    """A score is the number itself, and not its sigmoid."""
    numbered: bool = False
    """Events have ids: the client says that it reads them."""

    @property
    def streamed(self) -> bool:
        return self.kind == "stream"

    def writer(self, live: LiveRequest) -> NativeWriter:
        return NativeWriter(self, live)


class NativeWriter(StreamWriter):
    def __init__(self, form: NativeForm, live: LiveRequest) -> None:
        self._form, self._live = form, live

    def events(self, events: Sequence[Event], number: int) -> Iterator[bytes]:
        for i, event in enumerate(events, number):
            yield responses.event(event, i if self._form.numbered else 0)

    def whole(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        if self._form.kind == "score":
            yield responses.score(answers[0], raw=self._form.raw)
            return
        yield from responses.whole(
            answers, details=self._form.details, logprobs=self._form.logprobs, prompt=self._live.prompt_logprobs
        )
