"""Reads an answer as content, reasoning and tool calls, for every dialect."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from msgspec import Struct

from lightllm_mp.actors.front.chat.stop_cut import StopCut
from lightllm_mp.actors.front.live_request import Answer, Event
from lightllm_mp.facts import ChatFacts
from lightllm_mp.parsers.deltas import Content, Delta, Reasoning, ToolArguments, ToolCallBegin
from lightllm_mp.parsers.formats import Formats
from lightllm_mp.parsers.reply import reply_parser
from lightllm_mp.parsers.tool import Tool

SHORT_IDS = ("mistral", "mistral_list")
"""Formats whose templates demand ids of nine letters and digits."""


class ReplyForm(Struct, frozen=True, array_like=True):
    """How an answer is read. `tools`: those that it may call."""

    formats: Formats = Formats()
    tools: tuple[Tool, ...] = ()
    thinking: bool = False
    """The prompt ends within reasoning."""
    one_call: bool = False
    """The answer ends with its first call; later text is left out."""
    stops: tuple[str, ...] = ()
    """Stop strings that stay in the text (`Output.keep_stop`); they are cut off here."""

    @property
    def plain(self) -> bool:
        """Whether all text is content."""
        return not (self.formats.reasoning or self.formats.tool_calls)


def reply_form(facts: ChatFacts, tools: Sequence[Tool], *, reasoning: bool, thinking: bool | None) -> ReplyForm:
    """`reasoning`: separate it from content, if content can do without it. `thinking`: the client's choice for the
    template; None: no choice."""
    default, on, off = facts.thinking
    told = reasoning or Formats(reasoning=facts.reasoning).harmony
    formats = Formats(facts.tool_calls if tools else None, facts.reasoning if told else None)
    return ReplyForm(formats, tuple(tools), default if thinking is None else on if thinking else off)


class ReplyReader:
    """Reads one answer, event by event."""

    def __init__(self, form: ReplyForm, answer: Answer) -> None:
        self._parser = None
        if not form.plain:
            name, short = f"{answer.live.label}:{answer.index}", form.formats.tool_calls in SHORT_IDS
            self._parser = reply_parser(
                form.formats,
                form.tools,
                thinking=form.thinking,
                call_ids=lambda call: _call_id(f"{name}:{call}", short),
            )
        self._one_call = form.one_call
        self._stop = StopCut(form.stops) if form.stops else None
        self._within = form.thinking and form.formats.reasoning is not None
        self.reasoning_tokens = 0
        self.calls = 0
        """Tool calls that have begun."""

    @property
    def stop_string(self) -> str | None:
        """The string of the form's `stops` that ended the answer."""
        return self._stop.found if self._stop is not None else None

    def read(self, event: Event) -> list[Delta]:
        text = event.text
        if self._stop is not None:
            text = self._stop.cut(text, last=event.finish is not None)
        if self._parser is None:
            return [Content(text)] if text else []
        deltas = self._parser.push(text) if text else []
        if event.finish is not None:
            deltas = deltas + self._parser.finish()
        kept = []
        for delta in deltas:
            self._within = isinstance(delta, Reasoning)
            if self._one_call and self._is_more(delta):
                continue
            self.calls += isinstance(delta, ToolCallBegin)
            kept.append(delta)
        self.reasoning_tokens += self._within
        return kept

    def _is_more(self, delta: Delta) -> bool:
        """Whether the delta follows the first call."""
        return delta.index > 0 if isinstance(delta, ToolCallBegin | ToolArguments) else self.calls > 0

    def finish_reason(self, event: Event) -> str | None:
        """OpenAI's."""
        return "tool_calls" if event.finish == "stop" and self.calls else event.finish


def _call_id(name: str, short: bool) -> str:
    """Equal for a client that comes back."""
    digest = hashlib.blake2b(name.encode(), digest_size=12).hexdigest()
    return digest[:9] if short else "call_" + digest
