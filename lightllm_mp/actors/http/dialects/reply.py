"""An answer as content, reasoning and tool calls, whatever the dialect that shows it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from msgspec import Struct

from lightllm_mp.actors.front.live_request import Answer, Event
from lightllm_mp.messages import ChatFacts
from lightllm_mp.parsers.deltas import Content, Delta, Reasoning, ToolCallBegin
from lightllm_mp.parsers.formats import Formats
from lightllm_mp.parsers.reply import reply_parser
from lightllm_mp.parsers.tool import Tool


class ReplyForm(Struct, frozen=True, array_like=True):
    """How an answer is read. `tools`: those that it may call."""

    formats: Formats = Formats()
    tools: tuple[Tool, ...] = ()
    thinking: bool = False
    """The prompt ends within reasoning."""

    @property
    def plain(self) -> bool:
        """All of it is content."""
        return not (self.formats.reasoning or self.formats.tool_calls)


def reply_form(facts: ChatFacts, tools: Sequence[Tool], *, reasoning: bool, thinking: bool | None) -> ReplyForm:
    """`reasoning`: it is to be told from content. `thinking`: what the client asks of the template; None: nothing."""
    default, on, off = facts.thinking
    formats = Formats(facts.tool_calls if tools else None, facts.reasoning if reasoning else None)
    return ReplyForm(formats, tuple(tools), default if thinking is None else on if thinking else off)


class ReplyReader:
    """Reads one answer, event by event."""

    def __init__(self, form: ReplyForm, answer: Answer) -> None:
        self._parser = None
        if not form.plain:
            name, short = f"{answer.live.label}:{answer.index}", form.formats.tool_calls == "mistral"
            self._parser = reply_parser(
                form.formats,
                form.tools,
                thinking=form.thinking,
                call_ids=lambda call: _call_id(f"{name}:{call}", short),
            )
        self._within = form.thinking and form.formats.reasoning is not None
        self.reasoning_tokens = 0
        self.calls = 0
        """Tool calls that have begun."""

    def read(self, event: Event) -> list[Delta]:
        if self._parser is None:
            return [Content(event.text)] if event.text else []
        deltas = self._parser.push(event.text) if event.text else []
        if event.finish is not None:
            deltas = deltas + self._parser.finish()
        for delta in deltas:
            self._within = isinstance(delta, Reasoning)
            self.calls += isinstance(delta, ToolCallBegin)
        self.reasoning_tokens += self._within
        return deltas

    def finish_reason(self, event: Event) -> str | None:
        """OpenAI's."""
        return "tool_calls" if event.finish == "stop" and self.calls else event.finish


def _call_id(name: str, short: bool) -> str:
    """Equal for a client that comes back. Templates of Mistral's models demand nine letters and digits."""
    digest = hashlib.blake2b(name.encode(), digest_size=12).hexdigest()
    return digest[:9] if short else "call_" + digest
