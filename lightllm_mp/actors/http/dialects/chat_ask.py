"""What a chat asks of the engine, whatever the API that it came in: tools, thinking, arguments of the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from lightllm_mp.actors.http.dialects.chat_messages import Function
from lightllm_mp.actors.http.dialects.reply import ReplyForm, reply_form
from lightllm_mp.errors import InvalidRequest
from lightllm_mp.messages import ChatPrompt, Facts, Terms
from lightllm_mp.parsers.tool import Tool


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may call tools. `required`: it must."""

    mode: Literal["auto", "none", "required"] = "auto"
    names: frozenset[str] | None = None
    """The tools that it may, or must, call; None: any."""


@dataclass(frozen=True)
class ChatAsk:
    facts: Facts
    tools: tuple[Function, ...] = ()
    choice: ToolChoice | None = None
    """None: the client says nothing, so the model may call any tool."""
    parallel_calls: bool = True
    """The answer may have several calls."""
    template_arguments: dict[str, Any] = field(default_factory=dict)
    reasoning: bool = True
    """It is to be told from content."""
    add_generation_prompt: bool = True
    continue_final: bool = False
    template: str = ""
    """The client's own; empty: the model's."""
    stops: tuple[str, ...] = ()
    """Stop strings that the answer is to end with: the client is told which one it was."""

    @cached_property
    def reply(self) -> ReplyForm:
        """How the answer is read. Raises InvalidRequest for a choice of tools that there are not."""
        thinking = self.template_arguments.get("enable_thinking", self.template_arguments.get("thinking"))
        form = reply_form(
            self.facts.chat,
            self._callable(),
            reasoning=self.reasoning,
            thinking=thinking if isinstance(thinking, bool) else None,
        )
        return replace(form, thinking=form.thinking and not self.continue_final, stops=self.stops)

    @property
    def longest_answer(self) -> int:
        """Tokens, for a client that sets no limit."""
        return max(self.facts.engine.max_context, 1)

    def prompt(self, messages: Sequence[dict[str, Any]]) -> ChatPrompt:
        encode = msgspec.json.encode
        return ChatPrompt(
            encode(messages),
            encode([_as_template_takes_it(tool) for tool in self.tools]) if self.tools else b"",
            encode(self.template_arguments) if self.template_arguments else b"",
            add_generation_prompt=self.add_generation_prompt,
            continue_final=self.continue_final,
            template=self.template,
        )

    def terms(self, terms: Terms) -> Terms:
        """The API's terms, with what the form of the answer needs."""
        if self.stops:
            terms = replace(terms, output=replace(terms.output, stop=self.stops, keep_stop=True))
        if self.facts.chat.special_markers and not self.reply.plain:
            terms = replace(terms, output=replace(terms.output, skip_special_tokens=False))
        return terms

    def _callable(self) -> list[Tool]:
        """The tools that the answer may call."""
        choice, known = self.choice or ToolChoice(), {tool.name for tool in self.tools}
        if choice.mode == "none":
            return []
        if self.choice is not None and not known:
            raise InvalidRequest("tool_choice needs tools", param="tool_choice")
        names = known if choice.names is None else choice.names
        if missing := names - known:
            raise InvalidRequest(f"tool_choice: {min(missing)} is not one of the tools", param="tool_choice")
        return [_as_parser_takes_it(tool) for tool in self.tools if tool.name in names]


def _as_parser_takes_it(tool: Function) -> Tool:
    return Tool(tool.name, tool.parameters, bool(tool.strict))


def _as_template_takes_it(tool: Function) -> dict[str, Any]:
    function = {name: value for name, value in msgspec.to_builtins(tool).items() if value is not None}
    return {"type": "function", "function": function}
