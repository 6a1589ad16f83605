"""Types of fields that are decoded later: for a decoder they are `Raw`, for clients they have these types. A type may
stand in a JSON schema if msgspec has no union for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from lightllm_mp.actors.front.chat.functions import ToolCall
from lightllm_mp.actors.front.chat.guides import GuideFields, NamedSchema, StructuredOutputs
from lightllm_mp.actors.http.dialects import chat_messages as chat
from lightllm_mp.actors.http.dialects import pooled_request as pooled
from lightllm_mp.actors.http.dialects.anthropic import anthropic_messages as turns
from lightllm_mp.actors.http.dialects.anthropic.anthropic_request import (
    AskedMessages,
    MessageFormat,
    MessagesBody,
    ToolParam,
)
from lightllm_mp.actors.http.dialects.chat_request import ChatBody
from lightllm_mp.actors.http.dialects.completion_request import CompletionBody
from lightllm_mp.actors.http.dialects.responses import response_items as items
from lightllm_mp.actors.http.dialects.responses import response_request as responses
from lightllm_mp.actors.http.dialects.tokenize_request import DetokenizeBody, TokenizeBody
from lightllm_mp.actors.http.image_inputs import MOST_FRAMES, Edge, ImageItem, VideoItem
from lightllm_mp.actors.http.schema import MAX_ITEMS, GenerateBody, InputId, Multimodal, ScoreBody, TokensBody
from lightllm_mp.sampling_parameters import Id, RequestParameters

Object = dict[str, Any]
SchemaText = Object | bool | str
"""A JSON schema, or a text that holds one."""
Ids = Annotated[list[InputId], Meta(min_length=1)]
Prompt = str | Ids
Images = Annotated[list[ImageItem], Meta(max_length=MAX_ITEMS)]
Videos = Annotated[list[VideoItem], Meta(max_length=MAX_ITEMS)]
Frames = Annotated[list[ImageItem], Meta(min_length=1, max_length=MOST_FRAMES)]
Nothing = None
"""The field is known, and refused unless it is null."""
Empty = Annotated[list[Any], Meta(max_length=0)] | Annotated[Object, Meta(max_length=0)]
"""The field is known, and refused unless it is empty."""
BLOCKS = (
    turns.TextBlockParam,
    turns.ImageBlockParam,
    turns.ToolResultBlockParam,
    turns.ThinkingBlockParam,
    turns.RedactedBlockParam,
    turns.ToolUseBlockParam,
)
ITEMS = (items.MessageItem, items.CallItem, items.CallOutputItem, items.ReasoningItem)
Texts = Annotated[list[str], Meta(min_length=1, max_length=pooled.MAX_INPUTS)]
Messages = Annotated[list[chat.Message], Meta(min_length=1, max_length=chat.MAX_MESSAGES)]
Tools = Annotated[list[chat.FunctionTool], Meta(max_length=chat.MAX_TOOLS)]


def any_of(*types: Any) -> dict[str, Any]:
    return {"anyOf": list(types)}


def list_of(*types: Any) -> dict[str, Any]:
    return {"type": "array", "items": any_of(*types)}


DEFERRED: dict[type[Struct], dict[str, Any]] = {
    GenerateBody: {"inputs": Prompt, "parameters": RequestParameters},
    TokensBody: {"text": str, "parameters": RequestParameters},
    ScoreBody: {"chat": str, "ids": list[Id], "parameters": RequestParameters},
    Multimodal: {"images": Images, "videos": Videos, "audios": Empty},
    ImageItem: {"data": str | tuple[Edge, Edge]},
    VideoItem: {"data": any_of(str, Frames)},
    GuideFields: {"guided_json": SchemaText, "json_schema": SchemaText},
    StructuredOutputs: {"json": SchemaText},
    NamedSchema: {"schema": SchemaText},
    ChatBody: {
        "messages": Messages,
        "tools": Tools,
        "audio": Nothing,
        "prediction": Nothing,
        "web_search_options": Nothing,
        "functions": Nothing,
        "function_call": Nothing,
    },
    chat.Message: {"content": str | list[chat.Part], "tool_calls": list[ToolCall]},
    chat.Part: {
        "image_url": chat.ImageUrl | str,
        "video_url": chat.VideoUrl | str,
        "video": any_of(str, Annotated[list[str], Meta(min_length=1, max_length=MOST_FRAMES)]),
    },
    chat.ImageUrl: {"url": str},
    chat.VideoUrl: {"url": str},
    CompletionBody: {"prompt": any_of(str, Ids, list[str], list[Ids])},
    TokenizeBody: {"prompt": str, "messages": Messages, "tools": Tools},
    DetokenizeBody: {"tokens": Annotated[list[Id], Meta(min_length=1)]},
    AskedMessages: {
        "messages": Annotated[list[turns.MessageParam], Meta(min_length=1, max_length=chat.MAX_MESSAGES)],
        "system": str | list[turns.TextBlockParam],
        "tools": Annotated[list[ToolParam], Meta(max_length=chat.MAX_TOOLS)],
        "cache_control": Any,
        "context_management": Object,
        "mcp_servers": Empty,
        "diagnostics": Empty,
    },
    MessagesBody: {"container": Empty},
    MessageFormat: {"schema": SchemaText},
    ToolParam: {"cache_control": Any, "input_examples": Empty},
    turns.MessageParam: {"content": any_of(str, list_of(*BLOCKS))},
    turns.BlockParam: {"cache_control": Any},
    turns.TextBlockParam: {"type": Literal["text"], "citations": Empty},
    turns.ImageBlockParam: {"type": Literal["image"], "source": turns.ImageSourceParam, "transformations": Empty},
    turns.ImageSourceParam: {"data": str, "url": str},
    turns.ThinkingBlockParam: {"type": Literal["thinking"]},
    turns.RedactedBlockParam: {"type": Literal["redacted_thinking"]},
    turns.ToolUseBlockParam: {"type": Literal["tool_use"], "input": Object, "caller": Any},
    responses.ResponseBody: {
        "input": any_of(str, list_of(*ITEMS)),
        "tools": list_of(responses.ResponseTool, responses.NamespaceTool),
        "conversation": Empty,
        "prompt": Empty,
        "context_management": Empty,
        "moderation": Empty,
        "client_metadata": Any,
        "prompt_cache_options": Any,
    },
    responses.SchemaFormat: {"schema": SchemaText},
    responses.NamespaceTool: {"tools": list[responses.ResponseTool]},
    items.MessageItem: {"type": Literal["message"], "content": str | list[items.InputPart]},
    items.CallItem: {"type": Literal["function_call"]},
    items.CallOutputItem: {"type": Literal["function_call_output"], "output": str | list[items.InputPart]},
    items.ReasoningItem: {"type": Literal["reasoning"]},
    items.InputPart: {"image_url": str},
    pooled.EmbeddingBody: {"input": any_of(str, Ids, list[str], list[Ids])},
    pooled.RerankBody: {
        "documents": Annotated[list[str | pooled.Document], Meta(min_length=1, max_length=pooled.MAX_INPUTS)],
    },
    pooled.ScorePairsBody: {"text_1": str | Texts, "text_2": str | Texts},
    turns.ToolResultBlockParam: {
        "type": Literal["tool_result"],
        "content": any_of(str, list_of(turns.TextBlockParam, turns.ImageBlockParam)),
    },
}


def _only(name: str, *others: str) -> dict[str, Any]:
    """The field is given and the others are not."""
    absent = {other: {"type": "null"} for other in others}
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}} | absent}


def _roles(*roles: str) -> dict[str, Any]:
    return {"role": {"enum": list(roles)}}


def _types(*types: str) -> dict[str, Any]:
    return {"type": {"enum": list(types)}}


SAID = {"content": {"type": ["string", "array"]}}
CUT = {"not": {"required": ["truncate_prompt_tokens"], "properties": {"truncate_prompt_tokens": Literal[0]}}}
REFINED: dict[type[Struct], dict[str, Any]] = {
    pooled.EmbeddingBody: CUT,
    pooled.RerankBody: CUT,
    pooled.ScorePairsBody: CUT,
    ScoreBody: {"oneOf": [_only("chat", "ids"), _only("ids", "chat")]},
    TokenizeBody: {"oneOf": [_only("prompt", "messages", "tools"), _only("messages", "prompt")]},
    chat.Message: {
        "anyOf": [
            {"properties": _roles("assistant")},
            {
                "required": ["content"],
                "properties": _roles("system", "developer", "user", "tool") | SAID | {"tool_calls": {"type": "null"}},
            },
        ],
    },
    chat.Part: {
        "anyOf": [
            {"required": ["text"], "properties": _types("text", "input_text", "output_text") | {"text": str}},
            {"required": ["refusal"], "properties": _types("refusal") | {"refusal": str}},
            {"required": ["image_url"], "properties": _types("image_url", "input_image")},
            {"required": ["video_url"], "properties": _types("video_url")},
            {"required": ["video"], "properties": _types("video")},
        ],
    },
}
"""A rule for several fields of a struct together."""


def deferred(struct: type[Struct]) -> dict[str, Any]:
    """The fields of a struct and its bases that hold more than their types say."""
    found: dict[str, Any] = {}
    for base in reversed(struct.__mro__):
        found |= DEFERRED.get(base, {})
    return found
