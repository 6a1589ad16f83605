"""Answers of /v1/responses: typed events of a stream, or one response; also one that is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import field

from lightllm_mp.actors.front.chat.assistant_turn import AssistantTurn
from lightllm_mp.actors.front.chat.reply import ReplyForm
from lightllm_mp.actors.front.live_request import Answer, Event, LiveRequest
from lightllm_mp.actors.http import responses
from lightllm_mp.actors.http.dialects.blocks import AnswerBlock, BlockBegin, BlockEnd, BlockReader, BlockStep, BlockText
from lightllm_mp.actors.http.dialects.openai_logprobs import chat_logprobs
from lightllm_mp.actors.http.dialects.responses.response_items import qualified, sealed
from lightllm_mp.actors.http.dialects.writer import StreamableForm, StreamWriter
from lightllm_mp.actors.http.responses import encode
from lightllm_mp.errors import EngineError

decode_text = msgspec.json.Decoder(str).decode
PREFIX = "resp_"
"""Of a response's id, before the label of its request."""
ERROR_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


class ResponseForm(StreamableForm, frozen=True, tag="response"):
    logprobs: bool = False
    encrypted: bool = False
    """Reasoning has `encrypted_content`."""
    namespaces: dict[str, str] = field(default_factory=dict)
    """Namespaces of functions, by the names that the model knows."""
    stored: bool = False
    instructions: str = ""
    reply: ReplyForm = ReplyForm()
    echo: bytes = b"{}"
    """JSON: the fields of a response that repeat its request."""

    def writer(self, live: LiveRequest) -> ResponseWriter:
        return ResponseWriter(self, live)


class ResponseWriter(StreamWriter):
    def __init__(self, form: ResponseForm, live: LiveRequest) -> None:
        self._form, self._live, self._answer = form, live, live.answers[0]
        self._blocks = BlockReader(form.reply, self._answer)
        self._head = b'{"id":%b,"object":"response","created_at":%d,"model":%b,%b,"output":[' % (
            encode(PREFIX + live.label),
            form.created,
            encode(form.model),
            form.echo[1:-1],
        )
        self._items: list[bytes] = []
        """JSON of the items that are complete."""
        self._tokens: list[Event] = []
        """Events since the last text, for their logprobs."""
        self._sequence = 2
        """Number of the next event of the stream; `begin` has 0 and 1."""

    def seen(self, events: Sequence[Event]) -> None:
        for _ in self.events(events, 1):
            pass

    def begin(self) -> bytes:
        response = b',"response":' + self._response("in_progress")
        return _event(b"created", 0, response) + _event(b"in_progress", 1, response)

    def events(self, events: Sequence[Event], number: int) -> Iterator[bytes]:
        for i, event in enumerate(events, number):
            pieces = [piece for step in self._steps(event) for piece in self._shown(step)]
            if pieces and self._form.numbered:
                pieces[-1] = b"id: %d\n" % i + pieces[-1]
            yield from pieces

    def end(self) -> bytes:
        pieces = [piece for step in self._blocks.end() for piece in self._shown(step, self._status())]
        kind = b"completed" if self._status() == "completed" else b"incomplete"
        return b"".join((*pieces, self._next(kind, b',"response":' + self._response(self._status()))))

    def failure(self, error: EngineError) -> bytes:
        message = responses.INTERNAL if error.code in responses.OPERATORS else error.message
        problem = {"code": ERROR_CODES.get(error.status, "server_error"), "message": message}
        return self._next(b"failed", b',"response":' + self._response("failed", problem))

    def whole(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        yield self._head
        for events in self._answer.slices():
            yield b"".join(self._json(step) for event in events for step in self._steps(event))
        yield b"".join(self._json(step, self._status()) for step in self._blocks.end())
        yield self._tail(self._status() if not self._live.open else "in_progress")

    def _steps(self, event: Event) -> Iterator[BlockStep]:
        if self._form.logprobs:
            self._tokens.append(event)
        return self._blocks.read(event)

    def _json(self, step: BlockStep, status: str = "completed") -> bytes:
        """The step's part of the JSON array of items."""
        match step:
            case BlockBegin(block):
                self._item = _Item(block, self._live.label, self._form)
                if block.kind != "text":
                    self._tokens = []
                return (b"," if block.index else b"") + self._item.begin
            case BlockText(block, text):
                logprobs = chat_logprobs(self._tokens) if block.kind == "text" else []
                self._tokens = []
                return self._item.add(text, logprobs)
            case BlockEnd():
                return self._item.end(status)

    def _shown(self, step: BlockStep, status: str = "completed") -> Iterator[bytes]:
        """The events of a step."""
        self._json(step, status)
        item, index = self._item, step.block.index
        place = b',"item_id":%b,"output_index":%d' % (item.id, index)
        place += b"" if step.block.kind == "call" else b',"content_index":0'
        match step:
            case BlockBegin():
                yield self._next(b"output_item.added", b',"output_index":%d,"item":%b' % (index, item.empty))
                if item.part:
                    yield self._next(b"content_part.added", place + b',"part":' + item.part + item.part_end([]))
            case BlockText(_, text):
                yield self._next(
                    item.event + b".delta", place + b',"delta":%b' % encode(text) + item.shown(item.latest)
                )
            case BlockEnd():
                done = place + b',"%b":"%b"' % (item.field, item.text) + item.shown(item.logprobs)
                yield self._next(item.event + b".done", done)
                if item.part:
                    part = item.part + item.text + item.part_end(item.logprobs)
                    yield self._next(b"content_part.done", place + b',"part":' + part)
                self._items.append(item.begin + item.text + item.end(status))
                done = b',"output_index":%d,"item":%b' % (index, self._items[-1])
                yield self._next(b"output_item.done", done)

    def _response(self, status: str, error: dict[str, str] | None = None) -> bytes:
        return self._head + b",".join(self._items) + self._tail(status, error)

    def _tail(self, status: str, error: dict[str, str] | None = None) -> bytes:
        done = status in ("completed", "incomplete")
        rest = {
            "status": status,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "usage": self._usage() if done else None,
        }
        return b"]," + encode(rest)[1:]

    def _status(self) -> str:
        """Of the response, and of its last item, once the answer has ended."""
        return "completed" if self._answer.finish == "stop" else "incomplete"

    def _usage(self) -> dict[str, Any]:
        answer, produced = self._answer, len(self._answer.ids)
        return {
            "input_tokens": answer.prompt_tokens,
            "input_tokens_details": {"cached_tokens": answer.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": produced,
            "output_tokens_details": {"reasoning_tokens": self._blocks.reply.reasoning_tokens},
            "total_tokens": answer.prompt_tokens + produced,
        }

    def _next(self, kind: bytes, fields: bytes) -> bytes:
        self._sequence += 1
        return _event(kind, self._sequence - 1, fields)


class _Item:
    """The JSON of the item of a block: `begin`, its text in pieces, `end`."""

    def __init__(self, block: AnswerBlock, label: str, form: ResponseForm) -> None:
        self._encrypted = form.encrypted and block.kind == "reasoning"
        self._pieces: list[bytes] = []
        self.logprobs: list[dict[str, Any]] = []
        self.latest: list[dict[str, Any]] = []
        """The logprobs of the last piece."""
        name = f"{label}_{block.index}"
        match block.kind:
            case "text":
                self.id, self.event, self.field = encode("msg_" + name), b"output_text", b"text"
                head, self.part = b'"type":"message","role":"assistant"', b'{"type":"output_text","text":"'
            case "reasoning":
                self.id, self.event, self.field = encode("rs_" + name), b"reasoning_text", b"text"
                head, self.part = b'"type":"reasoning","summary":[]', b'{"type":"reasoning_text","text":"'
            case "call":
                self.id, self.event, self.field = encode("fc_" + name), b"function_call_arguments", b"arguments"
                call = {"type": "function_call", "call_id": block.id, "name": block.name}
                if namespace := form.namespaces.get(block.name):
                    call |= {"namespace": namespace, "name": block.name.removeprefix(qualified(namespace, ""))}
                head, self.part = encode(call)[1:-1], b""
        head = b'{"id":%b,%b,' % (self.id, head)
        self._has_logprobs = block.kind == "text"
        self.begin = head + (b'"content":[' + self.part if self.part else b'"arguments":"')
        self.empty = head + (b'"content":[]' if self.part else b'"arguments":""') + b',"status":"in_progress"}'

    @property
    def text(self) -> bytes:
        """The text so far, as in a JSON string."""
        return b"".join(self._pieces)

    def add(self, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        self._pieces.append(encode(text)[1:-1])
        self.latest = logprobs
        self.logprobs += logprobs
        return self._pieces[-1]

    def end(self, status: str) -> bytes:
        close = self.part_end(self.logprobs) + b"]" if self.part else b'"'
        if self._encrypted:
            close += b',"encrypted_content":' + encode(sealed(decode_text(b'"' + self.text + b'"')))
        return close + b',"status":%b}' % encode(status)

    def part_end(self, logprobs: list[dict[str, Any]]) -> bytes:
        more = b',"annotations":[]' if self._has_logprobs else b""
        return b'"' + more + self.shown(logprobs) + b"}"

    def shown(self, logprobs: list[dict[str, Any]]) -> bytes:
        """The field for logprobs, if there is one."""
        return b',"logprobs":' + encode(logprobs) if self._has_logprobs else b""


async def assistant_turn(form: ResponseForm, answer: Answer) -> AssistantTurn:
    """A complete answer as a turn of a chat that goes on. Other clients are served meanwhile."""
    turn, blocks, texts = AssistantTurn(), BlockReader(form.reply, answer), list[str]()

    def take(step: BlockStep) -> None:
        match step:
            case BlockBegin():
                texts.clear()
            case BlockText(_, text):
                texts.append(text)
            case BlockEnd(AnswerBlock(kind="text")):
                turn.texts += texts
            case BlockEnd(AnswerBlock(kind="reasoning")):
                turn.thoughts += texts
            case BlockEnd(block):
                turn.call(block.id, block.name, "".join(texts))

    for events in answer.slices():
        for event in events:
            for step in blocks.read(event):
                take(step)
        await asyncio.sleep(0)
    for step in blocks.end():
        take(step)
    return turn


def _event(kind: bytes, number: int, fields: bytes) -> bytes:
    name = b"response." + kind
    return b'event: %b\ndata: {"type":"%b","sequence_number":%d%b}\n\n' % (name, name, number, fields)
