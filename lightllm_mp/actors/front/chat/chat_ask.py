"""A chat's request to the engine, the same for every API: tools, reasoning, arguments of the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from lightllm_mp.actors.front.chat.functions import Function
from lightllm_mp.actors.front.chat.reply import ReplyForm, reply_form
from lightllm_mp.errors import InvalidRequest
from lightllm_mp.facts import Facts
from lightllm_mp.messages import ChatPrompt, Guide, Terms
from lightllm_mp.parsers.formats import Formats, reasoning_end
from lightllm_mp.parsers.grammar import grammar
from lightllm_mp.parsers.tool import Tool


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may call tools. `required`: it must."""

    mode: Literal["auto", "none", "required"] = "auto"
    names: frozenset[str] | None = None
    """The tools that it may or must call; None: any."""


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
    """Reasoning is separated from content."""
    add_generation_prompt: bool = True
    continue_final: bool = False
    template: str = ""
    """The client's own template; empty: the model's."""
    logprobs: bool = False
    """The client sees the logprobs of the answer's tokens."""
    stops: tuple[str, ...] = ()
    """Stop strings; the client learns which one ended the answer."""

    @cached_property
    def reply(self) -> ReplyForm:
        """How to read the answer. Raises InvalidRequest for a choice of unknown tools."""
        form = reply_form(
            self.facts.chat,
            self._callable(),
            reasoning=self.reasoning,
            thinking=self._thinking,
        )
        thinking = form.thinking and not self.continue_final
        return replace(form, thinking=thinking, one_call=not self.parallel_calls, stops=self.stops)

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
        guide = self._guide(terms.guide)
        return replace(terms, guide=guide and replace(guide, jump=not self.logprobs))

    def _guide(self, wanted: Guide | None) -> Guide | None:
        """The constraint on the answer: the client's, or calls of tools. Reasoning before it is free."""
        chat, tools = self.facts.chat, self.reply.tools
        after = "" if self._thought else reasoning_end(Formats(reasoning=chat.reasoning)) or ""
        required = self.choice is not None and self.choice.mode == "required"
        if not (required or (tools and (wanted or any(tool.strict for tool in tools)))):
            return wanted and replace(wanted, after=after)
        formats = Formats(chat.tool_calls, chat.reasoning)
        if formats.tool_calls is None:
            raise InvalidRequest("this server does not know how the model calls tools", param="tool_choice")
        source = grammar(
            formats,
            tools,
            parallel=self.parallel_calls,
            required=required,
            answer=None if required else _schema_of(wanted),
            special_tokens=chat.special_markers,
        )
        return Guide("lark", source, "" if formats.harmony else after)

    @property
    def _thought(self) -> bool:
        """Whether the prompt ends behind reasoning."""
        default, on, off = self.facts.chat.thought
        return default if self._thinking is None else on if self._thinking else off

    @property
    def _thinking(self) -> bool | None:
        """The client's choice of reasoning for the template; None: no choice."""
        found = self.template_arguments.get("enable_thinking", self.template_arguments.get("thinking"))
        return found if isinstance(found, bool) else None

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


def _schema_of(guide: Guide | None) -> dict[str, Any] | None:
    """The schema of answers that are not calls. Raises InvalidRequest for an invalid constraint."""
    match guide:
        case None:
            return None
        case Guide(kind="json_object"):
            return {"type": "object"}
        case Guide(kind="json_schema", source=source):
            schema = msgspec.json.decode(source)
            return schema if isinstance(schema, dict) else {}
    raise InvalidRequest("beside tools, an answer may only be constrained to JSON", param="tools")


def _as_parser_takes_it(tool: Function) -> Tool:
    return Tool(tool.name, tool.parameters, bool(tool.strict))


def _as_template_takes_it(tool: Function) -> dict[str, Any]:
    function = {name: value for name, value in msgspec.to_builtins(tool).items() if value is not None}
    return {"type": "function", "function": function}
