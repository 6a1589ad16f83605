"""Answers of /v1/messages: typed events of a stream, or one message."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from lightllm_mp.actors.front.chat.reply import ReplyForm
from lightllm_mp.actors.front.live_request import Answer, Event, LiveRequest
from lightllm_mp.actors.http import responses
from lightllm_mp.actors.http.dialects.blocks import AnswerBlock, BlockBegin, BlockEnd, BlockReader, BlockStep, BlockText
from lightllm_mp.actors.http.dialects.openai_fields import TOO_LONG
from lightllm_mp.actors.http.dialects.writer import StreamableForm, StreamWriter
from lightllm_mp.actors.http.responses import encode
from lightllm_mp.errors import EngineError, PromptTooLong

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_JSON = re.compile(r'"(?:[^"\\]|\\.)*("?)|[{}\[\],]', re.DOTALL)


class MessageUsage(Struct, frozen=True):
    input_tokens: int
    """Without cached ones."""
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: dict[str, int]


class MessageForm(StreamableForm, frozen=True, tag="message"):
    max_tokens: int = 0
    """What the client asked for."""
    reply: ReplyForm = ReplyForm()
    show_thinking: bool = True

    def writer(self, live: LiveRequest) -> MessageWriter:
        return MessageWriter(self, live)


class MessageWriter(StreamWriter):
    def __init__(self, form: MessageForm, live: LiveRequest) -> None:
        self._form, self._live, self._answer = form, live, live.answers[0]
        self._blocks = BlockReader(form.reply, self._answer)
        self._head = b'{"id":%b,"type":"message","role":"assistant","model":%b,"content":[' % (
            encode("msg_" + live.label),
            encode(form.model),
        )
        self._arguments: list[str] = []

    def seen(self, events: Sequence[Event]) -> None:
        for event in events:
            for _ in self._blocks.read(event):
                pass

    def begin(self) -> bytes:
        message = self._head + b'],"stop_reason":null,"stop_sequence":null,"usage":%b}' % encode(self._usage(0))
        return _event(b"message_start", b',"message":' + message) + PING

    def events(self, events: Sequence[Event], number: int) -> Iterator[bytes]:
        for i, event in enumerate(events, number):
            pieces = [piece for step in self._blocks.read(event) for piece in self._shown(step)]
            if pieces and self._form.numbered:
                pieces[-1] = b"id: %d\n" % i + pieces[-1]
            yield from pieces

    def end(self) -> bytes:
        pieces = [piece for step in self._blocks.end() for piece in self._shown(step)]
        delta = b',"delta":%b,"usage":%b' % (encode(self._stop()), encode(self._usage(len(self._answer.ids))))
        return b"".join((*pieces, _event(b"message_delta", delta), _event(b"message_stop")))

    def failure(self, error: EngineError) -> bytes:
        return b"event: error\ndata: %b\n\n" % failure(error, self._live.label)

    def whole(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        yield self._head
        for events in self._answer.slices():
            yield self._json(step for event in events for step in self._blocks.read(event))
        yield self._json(self._blocks.end())
        yield b"]," + encode(self._stop())[1:-1]
        yield b',"usage":%b}' % encode(self._usage(len(self._answer.ids)))

    def _shown(self, step: BlockStep) -> Iterator[bytes]:
        """The events of a step."""
        match step:
            case BlockBegin(block):
                begin = b',"index":%d,"content_block":%b' % (block.index, encode(_empty(block)))
                yield _event(b"content_block_start", begin)
            case BlockText(AnswerBlock(index, kind), text):
                match kind:
                    case "text":
                        yield _delta(index, b"text_delta", b"text", text)
                    case "call":
                        yield _delta(index, b"input_json_delta", b"partial_json", text)
                    case "reasoning" if self._form.show_thinking:
                        yield _delta(index, b"thinking_delta", b"thinking", text)
            case BlockEnd(block):
                if block.kind == "reasoning":
                    yield _delta(block.index, b"signature_delta", b"signature", self._signature(block))
                yield _event(b"content_block_stop", b',"index":%d' % block.index)

    def _json(self, steps: Iterable[BlockStep]) -> bytes:
        """The steps' part of the JSON array of blocks."""
        return b"".join(self._part(step) for step in steps)

    def _part(self, step: BlockStep) -> bytes:
        match step:
            case BlockBegin(block):
                comma = b"," if block.index else b""
                match block.kind:
                    case "text":
                        return comma + b'{"type":"text","text":"'
                    case "reasoning":
                        return comma + b'{"type":"thinking","thinking":"'
                    case "call":
                        self._arguments = []
                        return comma + encode(_empty(block) | {"input": None})[: -len(b"null}")]
            case BlockText(block, text):
                if block.kind == "call":
                    self._arguments.append(text)
                    return b""
                return encode(text)[1:-1] if block.kind == "text" or self._form.show_thinking else b""
            case BlockEnd(block):
                match block.kind:
                    case "text":
                        return b'"}'
                    case "reasoning":
                        return b'","signature":%b}' % encode(self._signature(block))
                    case "call":
                        return encode(tool_input("".join(self._arguments))) + b"}"

    def _stop(self) -> dict[str, str | None]:
        reply, finish = self._blocks.reply, self._answer.finish
        reason = "end_turn"
        if reply.stop_string is not None:
            reason = "stop_sequence"
        elif finish == "length":
            full = len(self._answer.ids) < self._form.max_tokens
            reason = "model_context_window_exceeded" if full else "max_tokens"
        elif finish == "stop" and reply.calls:
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": reply.stop_string}

    def _usage(self, produced: int) -> MessageUsage:
        cached = self._answer.cached_tokens
        thinking = {"thinking_tokens": self._blocks.reply.reasoning_tokens if produced else 0}
        return MessageUsage(self._answer.prompt_tokens - cached, 0, cached, produced, thinking)

    def _signature(self, block: AnswerBlock) -> str:
        """Clients send it back; it identifies the thoughts, and the server does not check it."""
        return hashlib.blake2b(f"{self._live.label}:{block.index}".encode(), digest_size=24).hexdigest()


def failure(error: EngineError, label: str) -> bytes:
    """The error's JSON. Operator errors name files, so the client gets only INTERNAL."""
    message = responses.INTERNAL if error.code in responses.OPERATORS else error.message
    if isinstance(error, PromptTooLong):
        message = f"{TOO_LONG}: {message}"
    kind = ERROR_TYPES.get(error.status, "api_error")
    return encode({"type": "error", "error": {"type": kind, "message": message}, "request_id": label})


def tool_input(arguments: str) -> Any:
    """The object of arguments that may be cut off; then it lacks the last member, which may be incomplete."""
    for text in (arguments, _closed(arguments)):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return msgspec.Raw(text.encode())
    return {}


def _closed(text: str) -> str:
    """The longest prefix of a JSON text that closing brackets complete."""
    closers: list[str] = []
    closed = "{}"
    for found in _JSON.finditer(text):
        match found[0]:
            case "{" | "[" as opener:
                closers.append("}" if opener == "{" else "]")
                at = found.end()
            case "}" | "]":
                if closers:
                    closers.pop()
                at = found.end()
            case ",":
                at = found.start()
            case _:
                if not found[1]:
                    break  # the text ends within this string
                continue
        closed = text[:at] + "".join(reversed(closers))
    return closed


def _empty(block: AnswerBlock) -> dict[str, Any]:
    match block.kind:
        case "text":
            return {"type": "text", "text": ""}
        case "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "call":
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}


def _delta(index: int, kind: bytes, field: bytes, text: str) -> bytes:
    delta = b',"index":%d,"delta":{"type":"%b","%b":%b}' % (index, kind, field, encode(text))
    return _event(b"content_block_delta", delta)


def _event(kind: bytes, fields: bytes = b"") -> bytes:
    return b'event: %b\ndata: {"type":"%b"%b}\n\n' % (kind, kind, fields)
