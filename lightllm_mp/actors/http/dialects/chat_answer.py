"""Answers of /v1/chat/completions: chunks of a stream, or one object."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from lightllm_mp.actors.front.chat.reply import ReplyForm, ReplyReader
from lightllm_mp.actors.front.live_request import Answer, Event, LiveRequest
from lightllm_mp.actors.http.dialects.openai_choices import ChoicesForm, ChoicesWriter
from lightllm_mp.actors.http.dialects.openai_fields import Usage
from lightllm_mp.actors.http.dialects.openai_logprobs import chat_logprobs
from lightllm_mp.actors.http.responses import encode, json_array, prompt_logprobs
from lightllm_mp.parsers.deltas import Content, Delta, Reasoning, ToolArguments, ToolCallBegin


class ChatForm(ChoicesForm, frozen=True, tag="chat"):
    logprobs: bool = False
    reply: ReplyForm = ReplyForm()
    show_reasoning: bool = True

    def writer(self, live: LiveRequest) -> ChatWriter:
        return ChatWriter(self, live)


class ChatWriter(ChoicesWriter[LiveRequest]):
    def __init__(self, form: ChatForm, live: LiveRequest) -> None:
        kind = b"chat.completion.chunk" if form.stream else b"chat.completion"
        super().__init__(form, live, "chatcmpl-" + live.label, kind, b"delta")
        self._form = form
        self._replies = [ReplyReader(form.reply, answer) for answer in live.answers]
        shows_more = form.logprobs or form.token_ids or form.continuous_usage or form.numbered
        self._plain = form.reply.plain and not shows_more

    def seen(self, events: Sequence[Event]) -> None:
        for event in events:
            self._replies[event.index].read(event)

    def begin(self) -> bytes:
        """The role of each answer."""
        role = b'{"role":"assistant","content":""}'
        return b"".join(self._chunk % (answer.index, role) + self.RUNNING for answer in self._live.answers)

    def events(self, events: Sequence[Event], number: int) -> Iterator[bytes]:
        for i, event in enumerate(events, number):
            if self._plain and event.finish is None:
                yield self._chunk % (event.index, b'{"content":%b}' % encode(event.text)) + self.RUNNING
            else:
                yield from self._chunks(event, i)

    def whole(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        yield self._head + b',"choices":['
        for answer in answers:
            yield b'%b{"index":%d,"message":{"role":"assistant"' % (b"," * (answer.index > 0), answer.index)
            last = yield from self._message(answer)
            yield b'},"logprobs":'
            if self._form.logprobs:
                yield b'{"content":'
                yield from json_array(chat_logprobs(events) for events in answer.slices())
                yield b',"refusal":null}'
            else:
                yield b"null"
            if self._form.token_ids:
                yield b',"token_ids":' + encode(answer.ids.tolist())
            yield b',"finish_reason":%b}' % encode(last)
        yield b"]"
        yield from prompt_logprobs(self._live.prompt_logprobs)
        yield self._last_fields() + b',"service_tier":"default","system_fingerprint":null}'

    def _message(self, answer: Answer) -> Generator[bytes, None, str | None]:
        """The fields of a message. Returns the finish reason."""
        reply, reasoning, calls, began = self._replies[answer.index], list[str](), list[list[str]](), False
        finish: str | None = None
        for events in answer.slices():
            piece = []
            for event in events:
                for delta in reply.read(event):
                    match delta:
                        case Content(text):
                            piece.append(text)
                        case Reasoning(text):
                            reasoning.append(text)
                        case ToolCallBegin(name=name, id=id):
                            calls.append([id, name])
                        case ToolArguments(index, text):
                            calls[index].append(text)
                finish = reply.finish_reason(event)
            if content := "".join(piece):
                yield encode(content)[1:-1] if began else b',"content":' + encode(content)[:-1]
                began = True
        yield b'"' if began else b',"content":null' if calls else b',"content":""'
        yield b',"refusal":null'
        if reasoning and self._form.show_reasoning:
            yield b',"reasoning_content":' + encode("".join(reasoning))
        if calls:
            yield b',"tool_calls":' + encode(
                [
                    {"id": id, "type": "function", "function": {"name": name, "arguments": "".join(arguments)}}
                    for id, name, *arguments in calls
                ]
            )
        return finish

    def _chunks(self, event: Event, number: int) -> Iterator[bytes]:
        """The chunks of one event. The first shows the token, the last has the event's number and the finish."""
        reply = self._replies[event.index]
        deltas = [shown for delta in reply.read(event) if (shown := self._delta(delta))]
        if not deltas and (event.finish is not None or self._form.logprobs or self._form.token_ids):
            deltas = [b"{}" if event.finish is not None else b'{"content":""}']
        last = len(deltas) - 1
        for i, delta in enumerate(deltas):
            numbered = self._form.numbered and i == last
            parts = [b"id: %d\n" % number if numbered else b"", self._chunk % (event.index, delta)]
            if self._form.logprobs and i == 0:
                parts.append(b',"logprobs":{"content":%b,"refusal":null}' % encode(chat_logprobs([event])))
            else:
                parts.append(b',"logprobs":null')
            if self._form.token_ids:
                parts.append(b',"token_ids":%b' % encode([event.id] if i == 0 and event.id >= 0 else []))
            finish = reply.finish_reason(event) if i == last else None
            parts.append(b',"finish_reason":%b}]' % encode(finish))
            if self._form.continuous_usage:
                parts.append(b',"usage":' + encode(self._usage()))
            parts.append(b"}\n\n")
            yield b"".join(parts)

    def _delta(self, delta: Delta) -> bytes:
        match delta:
            case Content(text):
                return b'{"content":%b}' % encode(text)
            case Reasoning(text):
                return b'{"reasoning_content":%b}' % encode(text) if self._form.show_reasoning else b""
            case ToolCallBegin(index, name, id):
                function = b'{"name":%b,"arguments":""}' % encode(name)
                return b'{"tool_calls":[{"index":%d,"id":%b,"type":"function","function":%b}]}' % (
                    index,
                    encode(id),
                    function,
                )
            case ToolArguments(index, text):
                return b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (index, encode(text))

    def _usage(self) -> Usage:
        answers = self._live.answers
        first, produced = answers[0], sum(len(answer.ids) for answer in answers)
        reasoning = sum(reply.reasoning_tokens for reply in self._replies)
        return Usage(
            first.prompt_tokens,
            produced,
            first.prompt_tokens + produced,
            {"cached_tokens": first.cached_tokens},
            {"reasoning_tokens": reasoning},
        )
