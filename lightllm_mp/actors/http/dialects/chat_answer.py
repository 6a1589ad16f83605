"""Answers of /v1/chat/completions: chunks of a stream, or one object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lightllm_mp.actors.front.live_request import SLICE, Answer, Event, LiveRequest
from lightllm_mp.actors.http.dialects.openai_fields import Usage
from lightllm_mp.actors.http.dialects.openai_logprobs import chat_logprobs
from lightllm_mp.actors.http.dialects.writer import AnswerForm, AnswerWriter
from lightllm_mp.actors.http.responses import encode, json_array, prompt_logprobs

DONE = b"data: [DONE]\n\n"


class ChatForm(AnswerForm, frozen=True, tag="chat"):
    stream: bool = False
    created: int = 0
    """Seconds since 1970."""
    model: str = ""
    numbered: bool = False
    """Events have ids: the client gave its request a name, so it can come back."""
    usage: bool = False
    continuous_usage: bool = False
    logprobs: bool = False
    token_ids: bool = False

    @property
    def streamed(self) -> bool:
        return self.stream

    def writer(self, live: LiveRequest) -> ChatWriter:
        return ChatWriter(self, live)


class ChatWriter(AnswerWriter):
    def __init__(self, form: ChatForm, live: LiveRequest) -> None:
        self._form, self._live = form, live
        kind = b"chat.completion.chunk" if form.stream else b"chat.completion"
        self._head = b'{"id":%b,"object":"%b","created":%d,"model":%b' % (
            encode("chatcmpl-" + live.label),
            kind,
            form.created,
            encode(form.model),
        )
        null = b',"usage":null' if form.usage and not form.continuous_usage else b""
        self._chunk = b"data: " + self._head + null + b',"choices":[{"index":%d,"delta":'
        self._running = b',"logprobs":null,"finish_reason":null}]}\n\n'
        self._plain = not (form.logprobs or form.token_ids or form.continuous_usage or form.numbered)

    def begin(self) -> bytes:
        """The role of each answer."""
        role = b'{"role":"assistant","content":""}'
        return b"".join(self._chunk % answer.index + role + self._running for answer in self._live.answers)

    def events(self, events: Sequence[Event], number: int) -> Iterator[bytes]:
        for i, event in enumerate(events, number):
            delta = b'{"content":%b}' % encode(event.text) if event.text or event.finish is None else b"{}"
            if self._plain and event.finish is None:
                yield self._chunk % event.index + delta + self._running
            else:
                yield self._full(event, delta, i)

    def end(self) -> bytes:
        if not self._form.usage:
            return DONE
        return b"data: " + self._head + b',"choices":[],"usage":' + encode(self._usage()) + b"}\n\n" + DONE

    def whole(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        yield self._head + b',"choices":['
        for answer in answers:
            yield b'%b{"index":%d,"message":{"role":"assistant","content":"' % (b"," * (answer.index > 0), answer.index)
            for events in _slices(answer):
                yield encode("".join(event.text for event in events))[1:-1]
            yield b'","refusal":null},"logprobs":'
            if self._form.logprobs:
                yield b'{"content":'
                yield from json_array(chat_logprobs(events) for events in _slices(answer))
                yield b',"refusal":null}'
            else:
                yield b"null"
            if self._form.token_ids:
                yield b',"token_ids":' + encode(answer.ids.tolist())
            yield b',"finish_reason":%b}' % encode(answer.finish)
        yield b"]"
        yield from prompt_logprobs(self._live.prompt_logprobs)
        yield b',"usage":%b,"service_tier":"default","system_fingerprint":null}' % encode(self._usage())

    def _full(self, event: Event, delta: bytes, number: int) -> bytes:
        parts = [b"id: %d\n" % number if self._form.numbered else b"", self._chunk % event.index, delta]
        if self._form.logprobs:
            parts.append(b',"logprobs":{"content":%b,"refusal":null}' % encode(chat_logprobs([event])))
        else:
            parts.append(b',"logprobs":null')
        if self._form.token_ids:
            parts.append(b',"token_ids":%b' % encode([event.id] if event.id >= 0 else []))
        parts.append(b',"finish_reason":%b}]' % encode(event.finish))
        if self._form.continuous_usage:
            parts.append(b',"usage":' + encode(self._usage()))
        parts.append(b"}\n\n")
        return b"".join(parts)

    def _usage(self) -> Usage:
        return usage(self._live.answers)


def usage(answers: Iterable[Answer]) -> Usage:
    prompt = cached = produced = 0
    for answer in answers:
        produced += len(answer.ids)
        if answer.index == 0:
            prompt, cached = answer.prompt_tokens, answer.cached_tokens
    return Usage(prompt, produced, prompt + produced, {"cached_tokens": cached}, {"reasoning_tokens": 0})


def _slices(answer: Answer) -> Iterator[list[Event]]:
    for first in range(0, len(answer.ends), SLICE):
        yield answer.slice(first, first + SLICE)
