"""Shared by the answers of /v1/chat/completions and /v1/completions: objects with choices, and their stream."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.http.dialects.openai_fields import Usage
from lightllm_mp.actors.http.dialects.timings import timings
from lightllm_mp.actors.http.dialects.writer import StreamableForm, StreamWriter
from lightllm_mp.actors.http.live_group import LiveGroup
from lightllm_mp.actors.http.responses import encode, failure
from lightllm_mp.errors import EngineError

Live = TypeVar("Live", bound=LiveRequest | LiveGroup)
DONE = b"data: [DONE]\n\n"


class ChoicesForm(StreamableForm, frozen=True):
    usage: bool = False
    """A stream ends with it."""
    continuous_usage: bool = False
    """Every chunk has it."""
    token_ids: bool = False
    timings: bool = False
    """The end has the usage, and `timings` beside it."""


class ChoicesWriter(StreamWriter, Generic[Live]):
    """`name`, `kind`: of the object. `part`: what a chunk's choice shows, `delta` or `text`."""

    RUNNING = b',"logprobs":null,"finish_reason":null}]}\n\n'
    """The end of a chunk without other content."""

    def __init__(self, form: ChoicesForm, live: Live, name: str, kind: bytes, part: bytes) -> None:
        self._live, self._usage_at_end, self._timed = live, form.usage, form.timings
        self._head = b'{"id":%b,"object":"%b","created":%d,"model":%b' % (
            encode(name),
            kind,
            form.created,
            encode(form.model),
        )
        null = b',"usage":null' if form.usage and not form.continuous_usage else b""
        choice = b',"choices":[{"index":%%d,"%b":%%b' % part
        self._chunk = b"data: " + self._head.replace(b"%", b"%%") + null + choice
        """A choice from its index and the JSON of its content."""

    def end(self) -> bytes:
        if not (self._usage_at_end or self._timed):
            return DONE
        return b"data: " + self._head + b',"choices":[]' + self._last_fields() + b"}\n\n" + DONE

    def failure(self, error: EngineError) -> bytes:
        return b"data: %b\n\n" % failure(error)

    def _last_fields(self) -> bytes:
        """The usage, and the timings if the client wants them."""
        timed = b',"timings":' + encode(timings(self._live)) if self._timed else b""
        return b',"usage":' + encode(self._usage()) + timed

    @abstractmethod
    def _usage(self) -> Usage:
        """So far."""
