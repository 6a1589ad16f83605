"""The answers of the Python API: completions, and answers to chats, whole or in chunks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from lightllm_mp.actors.front.chat.assistant_turn import AssistantTurn
from lightllm_mp.actors.front.chat.functions import FunctionCall, ToolCall
from lightllm_mp.actors.front.chat.reply import ReplyForm, ReplyReader
from lightllm_mp.actors.front.live_request import Answer, Event
from lightllm_mp.parsers.deltas import Content, Reasoning, ToolArguments, ToolCallBegin


class Completion(Struct, frozen=True):
    """One answer."""

    text: str
    token_ids: list[int]
    logprobs: list[float]
    """Logprob of each token in the model's distribution, before temperature and truncation."""
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    """Number of prompt tokens whose KV was reused."""


class ChatCompletion(Completion, frozen=True, kw_only=True):
    """The answer to a chat. `text` is all of it, as the model wrote it."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    """`function.arguments` is JSON text."""
    reasoning_tokens: int = 0

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message, to be appended to the chat before its next turn: its prompt then begins with what
        the engine has in its prefix cache."""
        turn = AssistantTurn([self.reasoning] if self.reasoning else [], [self.content], [])
        for call in self.tool_calls:
            turn.call(call.id or "", call.function.name, call.function.arguments)
        return turn.message()


class ChatChunk(Struct, frozen=True):
    """A piece of the answer to a chat."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    """Pieces of calls: a call's first piece has its id and name, the others text that its arguments go on with. `index`
    says which call it is."""
    finish_reason: str | None = None
    """Of the last chunk."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """So far."""
    cached_tokens: int = 0


class ChatReader:
    """Converts the events of one chat's answer to chunks."""

    def __init__(self, form: ReplyForm, answer: Answer) -> None:
        self._reply = ReplyReader(form, answer)

    @property
    def reasoning_tokens(self) -> int:
        return self._reply.reasoning_tokens

    def read(self, event: Event) -> ChatChunk:
        content, reasoning, calls = list[str](), list[str](), list[ToolCall]()
        for delta in self._reply.read(event):
            match delta:
                case Content(text):
                    content.append(text)
                case Reasoning(text):
                    reasoning.append(text)
                case ToolCallBegin(index, name, id):
                    calls.append(ToolCall(FunctionCall(name, ""), id, index=index))
                case ToolArguments(index, text):
                    calls.append(ToolCall(FunctionCall("", text), index=index))
        return ChatChunk(
            "".join(content),
            "".join(reasoning),
            tuple(calls),
            self._reply.finish_reason(event),
            event.prompt_tokens,
            event.count,
            event.cached_tokens,
        )


def completion(answer: Answer) -> Completion:
    return Completion(
        answer.text,
        answer.ids.tolist(),
        [event.logprob for event in answer.events() if event.id >= 0],
        answer.finish or "",
        answer.prompt_tokens,
        answer.cached_tokens,
    )


def chat_completion(answer: Answer, form: ReplyForm) -> ChatCompletion:
    reader, plain = ChatReader(form, answer), completion(answer)
    chunks = [reader.read(event) for event in answer.events()]
    return ChatCompletion(
        plain.text,
        plain.token_ids,
        plain.logprobs,
        chunks[-1].finish_reason or "" if chunks else "",
        plain.prompt_tokens,
        plain.cached_tokens,
        content="".join(chunk.content for chunk in chunks),
        reasoning="".join(chunk.reasoning for chunk in chunks),
        tool_calls=_joined(piece for chunk in chunks for piece in chunk.tool_calls),
        reasoning_tokens=reader.reasoning_tokens,
    )


def _joined(pieces: Iterable[ToolCall]) -> list[ToolCall]:
    """Joins the pieces of calls to whole calls, in order."""
    calls = dict[int | None, list[ToolCall]]()
    for piece in pieces:
        calls.setdefault(piece.index, []).append(piece)
    return [
        ToolCall(FunctionCall(first.function.name, "".join(piece.function.arguments for piece in more)), first.id)
        for first, *more in calls.values()
    ]
