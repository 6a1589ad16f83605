"""POST /v1/messages and /v1/messages/count_tokens: the body, and the request to the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.actors.front.chat.chat_ask import ChatAsk, ToolChoice
from lightllm_mp.actors.front.chat.functions import Function
from lightllm_mp.actors.front.chat.guides import schema_guide
from lightllm_mp.actors.http import schema
from lightllm_mp.actors.http.dialects.anthropic.anthropic_answer import MessageForm
from lightllm_mp.actors.http.dialects.anthropic.anthropic_messages import read_turns
from lightllm_mp.actors.http.dialects.chat_messages import MAX_TOOLS, MAX_TOOLS_BYTES, ReadChat
from lightllm_mp.actors.http.dialects.openai_fields import NULL, Label, decode_body
from lightllm_mp.actors.http.dialects.pieces import PieceReader, refuse_unless_empty
from lightllm_mp.errors import InvalidRequest
from lightllm_mp.facts import Facts
from lightllm_mp.messages import Terms
from lightllm_mp.sampling_parameters import MAX_ID, MAX_STOPS, Count, RequestParameters, Stop, terms

LARGE = frozenset(("messages", "system", "tools"))
LEAST_BUDGET = 1024
"""Tokens."""
ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


class ThinkingConfig(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[int, Meta(ge=LEAST_BUDGET, le=MAX_ID)] | None = None
    """The model is not told."""
    display: Literal["summarized", "omitted"] | None = None
    """Reasoning is shown unchanged or not at all."""


class ToolChoiceParam(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class MessageFormat(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    schema: Raw
    name: str | None = None


class OutputConfig(Struct, frozen=True, forbid_unknown_fields=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """An argument of the template: `reasoning_effort`."""
    format: MessageFormat | None = None


class ToolType(Struct, frozen=True):
    type: str | None = None


class ToolParam(Struct, frozen=True, forbid_unknown_fields=True):
    name: ToolName
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: str | None = None
    strict: bool | None = None
    cache_control: Raw = NULL
    eager_input_streaming: bool | None = None
    """Arguments are always streamed."""
    input_examples: Raw = NULL
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class AskedMessages(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields that make the prompt."""

    model: Label
    """Any name: a server has one model."""
    messages: Raw
    system: Raw = NULL
    tools: Raw = NULL
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig = OutputConfig()
    cache_control: Raw = NULL
    context_management: Raw = NULL
    mcp_servers: Raw = NULL
    output_format: MessageFormat | None = None
    """The older name of `output_config.format`."""
    speed: Literal["standard"] | None = None
    diagnostics: Raw = NULL
    inference_geo: str | None = None


class MessagesBody(AskedMessages, frozen=True, kw_only=True, forbid_unknown_fields=True):
    max_tokens: Count
    stream: bool | None = None
    stop_sequences: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=1000.0)] | None = None
    """Default 1. 0: greedy."""
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=MAX_ID)] | None = None
    metadata: dict[Literal["user_id"], Label | None] | None = None
    """A label of the client; it means nothing here."""
    service_tier: Literal["auto", "standard_only"] | None = None
    container: Raw = NULL


_bodies = msgspec.json.Decoder(MessagesBody)
_counts = msgspec.json.Decoder(AskedMessages)
_tool_type = msgspec.json.Decoder(ToolType)
_tool = msgspec.json.Decoder(ToolParam)


def messages_body(data: bytes) -> MessagesBody:
    """Raises InvalidRequest."""
    body = decode_body(_bodies, data, LARGE)
    refuse_unless_empty(body, "container")
    thinking = body.thinking
    if thinking is not None and thinking.type == "enabled":
        if thinking.budget_tokens is None:
            raise InvalidRequest("thinking: budget_tokens is needed", param="thinking")
        if thinking.budget_tokens >= body.max_tokens:
            raise InvalidRequest("thinking: budget_tokens must be less than max_tokens", param="thinking")
    return body


def count_body(data: bytes) -> AskedMessages:
    """Raises InvalidRequest."""
    return decode_body(_counts, data, LARGE)


class MessagesRequest:
    """Turns a body into a request to the engine. `facts`: of the model."""

    def __init__(self, body: AskedMessages, facts: Facts) -> None:
        self._body, self._facts = body, facts
        refuse_unless_empty(body, "mcp_servers", "diagnostics")
        if not _keeps_all(body.context_management):
            raise InvalidRequest("context_management is not supported", param="context_management")
        if body.inference_geo is not None:
            raise InvalidRequest("inference_geo is not supported", param="inference_geo")

    async def read(self) -> tuple[ChatAsk, ReadChat]:
        """The chat's request and its messages. Raises InvalidRequest."""
        body = self._body
        ask = ChatAsk(
            self._facts,
            tuple(await _tools(body.tools)),
            _tool_choice(body.tool_choice),
            not (body.tool_choice and body.tool_choice.disable_parallel_tool_use),
            template_arguments=_template_arguments(body),
            stops=_stops(body),
        )
        _ = ask.reply  # refuse a choice of unknown tools before reading the messages
        chat = await read_turns(body.system, body.messages)
        return replace(ask, continue_final=chat.messages[-1]["role"] == "assistant"), chat


def message_terms(body: MessagesBody, ask: ChatAsk, tenant: bytes) -> Terms:
    """Raises InvalidRequest."""
    parameters = RequestParameters(
        do_sample=True,
        temperature=body.temperature,
        top_p=body.top_p or None,
        top_k=1 if body.top_p == 0.0 else body.top_k,
        max_new_tokens=body.max_tokens,
        stop_sequences=list(ask.stops),
    )
    wanted = body.output_config.format or body.output_format
    guide = schema_guide(wanted.schema, "output_config") if wanted is not None else None
    return ask.terms(msgspec.structs.replace(terms(parameters, tenant), guide=guide))


def message_form(body: MessagesBody, ask: ChatAsk, model: str, *, numbered: bool, ignored: set[str]) -> MessageForm:
    thinking = body.thinking or ThinkingConfig("adaptive")
    if thinking.budget_tokens is not None:
        ignored = ignored | {"thinking.budget_tokens"}
    return MessageForm(
        ignored=tuple(sorted(ignored)),
        stream=bool(body.stream),
        model=model,
        numbered=numbered,
        max_tokens=body.max_tokens,
        reply=ask.reply,
        show_thinking=thinking.display != "omitted",
    )


async def _tools(raw: Raw) -> list[Function]:
    reader = PieceReader("tools")
    if memoryview(raw).nbytes > MAX_TOOLS_BYTES:
        raise reader.wrong(f"longer than {MAX_TOOLS_BYTES} bytes")
    found = []
    if raw != NULL:
        async for item in reader.items(raw, MAX_TOOLS):
            kind = reader.decode(_tool_type, item).type
            if kind not in (None, "custom"):
                raise reader.wrong(f"a tool of type {kind[:32]!r} is not served here, only tools of the client")
            tool = reader.decode(_tool, item)
            refuse_unless_empty(tool, "input_examples", param=reader.param)
            found.append(Function(tool.name, tool.description, tool.input_schema, tool.strict))
    return found


def _tool_choice(choice: ToolChoiceParam | None) -> ToolChoice | None:
    match choice:
        case None:
            return None
        case ToolChoiceParam(type="any"):
            return ToolChoice("required")
        case ToolChoiceParam(type="tool", name=str(name)):
            return ToolChoice("required", frozenset({name}))
        case ToolChoiceParam(type="auto" | "none" as mode):
            return ToolChoice(mode)
        case _:
            raise InvalidRequest("tool_choice: a tool has a name", param="tool_choice")


def _template_arguments(body: AskedMessages) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if body.output_config.effort is not None:
        found["reasoning_effort"] = body.output_config.effort
    if body.thinking is not None and body.thinking.type != "adaptive":
        found["enable_thinking"] = body.thinking.type == "enabled"
    return found


def _stops(body: AskedMessages) -> tuple[str, ...]:
    if not isinstance(body, MessagesBody):
        return ()
    return tuple(stop for stop in body.stop_sequences or () if stop)


class _Edit(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"]


class _Edits(Struct, frozen=True, forbid_unknown_fields=True):
    edits: list[_Edit] = []


_edits = msgspec.json.Decoder(_Edits | None)


def _keeps_all(raw: Raw) -> bool:
    """Whether the client wants its context unchanged, as Claude Code says."""
    try:
        schema.decode(_edits, raw)
    except InvalidRequest:
        return False
    return True
