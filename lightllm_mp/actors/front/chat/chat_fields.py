"""Fields of a chat in OpenAI's form: which tools it may call, and how it reasons."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from lightllm_mp.actors.front.chat.chat_ask import ToolChoice
from lightllm_mp.actors.front.chat.functions import Name

ReasoningEffort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class FunctionChoice(Struct, frozen=True, tag="function", tag_field="type"):
    """This function must be called."""

    class Named(Struct, frozen=True):
        name: Name

    function: Named


class AllowedTools(Struct, frozen=True, tag="allowed_tools", tag_field="type"):
    """Only these tools may, or must, be called."""

    class Choice(Struct, frozen=True):
        mode: Literal["auto", "required"]
        tools: Annotated[list[FunctionChoice], Meta(min_length=1, max_length=128)]

    allowed_tools: Choice


GivenChoice: TypeAlias = Literal["none", "auto", "required"] | FunctionChoice | AllowedTools


def tool_choice(given: GivenChoice | None) -> ToolChoice | None:
    match given:
        case FunctionChoice(function):
            return ToolChoice("required", frozenset({function.name}))
        case AllowedTools(choice):
            return ToolChoice(choice.mode, frozenset(tool.function.name for tool in choice.tools))
        case None:
            return None
        case mode:
            return ToolChoice(mode)


def template_arguments(effort: ReasoningEffort | None, kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """A chat template's arguments. `effort` "none" also switches its thinking off; `kwargs` have the last word."""
    named = {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    return named | (kwargs or {})
