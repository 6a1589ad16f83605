"""Splits an answer into consecutive blocks: reasoning, text, calls. Dialects with typed events show them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

from msgspec import Struct

from lightllm_mp.actors.front.chat.reply import ReplyForm, ReplyReader
from lightllm_mp.actors.front.live_request import Answer, Event
from lightllm_mp.parsers.deltas import Content, Reasoning, ToolArguments, ToolCallBegin


class AnswerBlock(Struct, frozen=True, gc=False):
    index: int
    """0, 1, ... within the answer."""
    kind: Literal["reasoning", "text", "call"]
    id: str = ""
    """Of a call, as its name."""
    name: str = ""


class BlockBegin(Struct, frozen=True):
    block: AnswerBlock


class BlockText(Struct, frozen=True):
    """A piece of the block's text; of a call, of the JSON text of its arguments."""

    block: AnswerBlock
    text: str


class BlockEnd(Struct, frozen=True):
    block: AnswerBlock


BlockStep: TypeAlias = BlockBegin | BlockText | BlockEnd


class BlockReader:
    """Reads one answer, event by event."""

    def __init__(self, form: ReplyForm, answer: Answer) -> None:
        self.reply = ReplyReader(form, answer)
        self._open: AnswerBlock | None = None
        self._next = 0

    def read(self, event: Event) -> Iterator[BlockStep]:
        for delta in self.reply.read(event):
            match delta:
                case Content(text):
                    yield from self._text("text", text)
                case Reasoning(text):
                    yield from self._text("reasoning", text)
                case ToolCallBegin(name=name, id=id):
                    yield from self._begin("call", id, name)
                case ToolArguments(text=text):
                    yield from self._text("call", text)

    def end(self) -> Iterator[BlockStep]:
        """Ends the answer."""
        if self._open is not None:
            yield BlockEnd(self._open)
            self._open = None

    def _text(self, kind: Literal["reasoning", "text", "call"], text: str) -> Iterator[BlockStep]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin(kind)
        assert self._open is not None
        yield BlockText(self._open, text)

    def _begin(self, kind: Literal["reasoning", "text", "call"], id: str = "", name: str = "") -> Iterator[BlockStep]:
        yield from self.end()
        self._open = AnswerBlock(self._next, kind, id, name)
        self._next += 1
        yield BlockBegin(self._open)
