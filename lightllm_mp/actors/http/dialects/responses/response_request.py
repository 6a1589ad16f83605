"""POST /v1/responses: the body, and the request to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.actors.front.chat.chat_ask import ChatAsk, ToolChoice
from lightllm_mp.actors.front.chat.functions import Function, Name
from lightllm_mp.actors.front.chat.guides import JsonObjectFormat, TextFormat, schema_guide
from lightllm_mp.actors.http.context import unix_time
from lightllm_mp.actors.http.dialects.chat_messages import MAX_TOOLS, MAX_TOOLS_BYTES, ReadChat
from lightllm_mp.actors.http.dialects.openai_fields import NULL, OpenAIBody, decode_body, refuse, request_terms
from lightllm_mp.actors.http.dialects.pieces import PieceReader, is_empty, refuse_unless_empty
from lightllm_mp.actors.http.dialects.responses.response_answer import ResponseForm
from lightllm_mp.actors.http.dialects.responses.response_items import qualified, read_input
from lightllm_mp.errors import InvalidRequest
from lightllm_mp.facts import Facts
from lightllm_mp.messages import Guide, Terms
from lightllm_mp.sampling_parameters import Count

LARGE = frozenset(("input", "instructions", "tools"))
LOGPROBS, ENCRYPTED = "message.output_text.logprobs", "reasoning.encrypted_content"
Included = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    # Of built-in tools, which there are none of.
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]


class ReasoningConfig(Struct, frozen=True, forbid_unknown_fields=True):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """An argument of the template; "none" also switches its thinking off."""
    summary: Literal["auto", "concise", "detailed"] | None = None
    """There are no summaries: the reasoning is shown unchanged."""
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class SchemaFormat(Struct, frozen=True, tag="json_schema", tag_field="type", forbid_unknown_fields=True):
    schema: Raw
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    """The answer always follows the schema."""


class TextConfig(Struct, frozen=True, forbid_unknown_fields=True):
    format: TextFormat | JsonObjectFormat | SchemaFormat | None = None
    verbosity: Literal["medium"] | None = None


class ChosenFunction(Struct, frozen=True, tag="function", tag_field="type", forbid_unknown_fields=True):
    """This function must be called."""

    name: Name


class ChosenTools(Struct, frozen=True, tag="allowed_tools", tag_field="type", forbid_unknown_fields=True):
    """Only these tools may, or must, be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenFunction], Meta(min_length=1, max_length=MAX_TOOLS)]


class ResponseTool(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    output_schema: None = None


class NamespaceTool(Struct, frozen=True, forbid_unknown_fields=True):
    """Functions whose calls have its name beside theirs."""

    type: Literal["namespace"]
    name: Name
    tools: Raw
    description: str | None = None


class ToolKind(Struct, frozen=True):
    type: str


class ResponseBody(OpenAIBody, frozen=True, kw_only=True):
    input: Raw
    instructions: str | None = None
    max_output_tokens: Count | None = None
    """Default: as many as fit."""
    max_tool_calls: Count | None = None
    """Of built-in tools, which there are none of."""
    tools: Raw = NULL
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | ChosenTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig = TextConfig()
    reasoning: ReasoningConfig | None = None
    store: bool | None = None
    """Default: true."""
    previous_response_id: Annotated[str, Meta(max_length=256)] | None = None
    truncation: Literal["disabled"] | None = None
    include: list[Included] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    background: Literal[False] | None = None
    conversation: Raw = NULL
    prompt: Raw = NULL
    context_management: Raw = NULL
    moderation: Raw = NULL
    client_metadata: Raw = NULL
    """A label of the client, as `metadata`; so is the next one, for prefixes are always reused."""
    prompt_cache_options: Raw = NULL
    chat_template_kwargs: dict[str, Any] | None = None

    def _guides(self) -> list[tuple[str, Guide | None]]:
        found = None
        match self.text.format:
            case JsonObjectFormat():
                found = Guide("json_object")
            case SchemaFormat(schema):
                found = schema_guide(schema, "text")
        return [*OpenAIBody._guides(self), ("text", found)]


_bodies = msgspec.json.Decoder(ResponseBody)
_tool_kind = msgspec.json.Decoder(ToolKind)
_namespace = msgspec.json.Decoder(NamespaceTool)
_tool = msgspec.json.Decoder(ResponseTool)


def response_body(data: bytes) -> ResponseBody:
    """Raises InvalidRequest."""
    body = decode_body(_bodies, data, LARGE)
    refuse_unless_empty(body, "conversation", "prompt", "context_management", "moderation")
    refuse(
        max_tokens=(body.max_tokens, "use max_output_tokens"),
        n=(None if body.n == 1 else body.n, "a response is one answer"),
        prompt_logprobs=(body.prompt_logprobs, ""),
        return_token_ids=(body.return_token_ids or None, ""),
        return_timings=(body.return_timings or None, ""),
    )
    return body


@dataclass(frozen=True, slots=True)
class AskedResponse:
    ask: ChatAsk
    chat: ReadChat
    """The messages that are new."""
    namespaces: dict[str, str]
    """Of functions, by the names that the model knows."""


async def read_response(body: ResponseBody, facts: Facts) -> AskedResponse:
    """Raises InvalidRequest."""
    tools = _ToolReader()
    await tools.read(body.tools)
    ask = ChatAsk(
        facts,
        tuple(tools.functions.values()),
        _tool_choice(body),
        body.parallel_tool_calls is not False,
        template_arguments=_template_arguments(body),
        logprobs=_shows_logprobs(body),
    )
    _ = ask.reply  # refuse a choice of unknown tools before reading the items
    chat = await read_input(body.input)
    if body.reasoning is not None and (body.reasoning.summary or body.reasoning.generate_summary):
        chat.ignored.add("reasoning.summary")
    return AskedResponse(ask, chat, tools.namespaces)


def _shows_logprobs(body: ResponseBody) -> bool:
    return bool(body.top_logprobs) or LOGPROBS in (body.include or ())


def response_terms(body: ResponseBody, ask: ChatAsk, tenant: bytes) -> Terms:
    """Raises InvalidRequest."""
    most = body.max_output_tokens or ask.longest_answer
    try:
        return ask.terms(request_terms(body, tenant, max_tokens=most, top_logprobs=body.top_logprobs or 0))
    except InvalidRequest as error:
        if error.param == "max_tokens":
            error.param = "max_output_tokens"
        raise


def response_form(
    body: ResponseBody, asked: AskedResponse, model: str, *, numbered: bool, stored: bool
) -> ResponseForm:
    return ResponseForm(
        ignored=tuple(sorted(asked.chat.ignored)),
        stream=bool(body.stream),
        created=unix_time(),
        model=model,
        numbered=numbered,
        logprobs=_shows_logprobs(body),
        encrypted=ENCRYPTED in (body.include or ()),
        namespaces=asked.namespaces,
        stored=stored,
        instructions=body.instructions or "",
        reply=asked.ask.reply,
        echo=msgspec.json.encode(_echo(body, stored)),
    )


def _echo(body: ResponseBody, stored: bool) -> dict[str, Any]:
    """The fields of a response that repeat its request."""
    reasoning = body.reasoning or ReasoningConfig()
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": stored,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": body.text.format or TextFormat(), "verbosity": "medium"},
        "tool_choice": body.tool_choice or "auto",
        "tools": [] if body.tools == NULL else body.tools,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }


class _ToolReader:
    """Reads the tools of a body. Raises InvalidRequest."""

    def __init__(self) -> None:
        self._reader = PieceReader("tools")
        self.functions: dict[str, Function] = {}
        self.namespaces: dict[str, str] = {}
        """Of functions, by the names that the model knows."""

    async def read(self, raw: Raw) -> None:
        reader = self._reader
        if memoryview(raw).nbytes > MAX_TOOLS_BYTES:
            raise reader.wrong(f"longer than {MAX_TOOLS_BYTES} bytes")
        if raw == NULL:
            return
        async for item in reader.items(raw, MAX_TOOLS):
            match reader.decode(_tool_kind, item).type:
                case "function":
                    self._add(reader.decode(_tool, item))
                case "namespace":
                    space = reader.decode(_namespace, item)
                    async for inner in reader.items(space.tools, MAX_TOOLS):
                        self._add(reader.decode(_tool, inner), space)
                case kind:
                    raise reader.wrong(f"a tool of type {kind[:32]!r} is not served here, only functions of the client")

    def _add(self, tool: ResponseTool, space: NamespaceTool | None = None) -> None:
        name, description = tool.name, tool.description
        if space is not None:
            name = qualified(space.name, name)
            description = "\n\n".join(filter(None, (space.description, description))) or None
            self.namespaces[name] = space.name
        if name in self.functions:
            raise self._reader.wrong(f"two have the name {name}")
        self.functions[name] = Function(name, description, tool.parameters, tool.strict)
        if len(self.functions) > MAX_TOOLS:
            raise self._reader.wrong(f"more than {MAX_TOOLS} functions")


def _tool_choice(body: ResponseBody) -> ToolChoice | None:
    match body.tool_choice:
        case None:
            return None
        case "auto" if is_empty(body.tools):  # clients always send it
            return None
        case ChosenFunction(name):
            return ToolChoice("required", frozenset({name}))
        case ChosenTools(mode, tools):
            return ToolChoice(mode, frozenset(tool.name for tool in tools))
        case mode:
            return ToolChoice(mode)


def _template_arguments(body: ResponseBody) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if body.reasoning is not None and (effort := body.reasoning.effort) is not None:
        found = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    return found | (body.chat_template_kwargs or {})
