"""What the fields hold that are decoded only when they are needed: for a decoder they are `Raw`, for clients they are
of these types. A type may stand within a JSON schema, where msgspec has no union for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from lightllm_mp.actors.http.dialects import anthropic_messages as turns
from lightllm_mp.actors.http.dialects import chat_messages as chat
from lightllm_mp.actors.http.dialects.anthropic_request import AskedMessages, ClientTool, MessagesBody, OutputConfig
from lightllm_mp.actors.http.dialects.chat_request import ChatBody
from lightllm_mp.actors.http.dialects.completion_request import CompletionBody
from lightllm_mp.actors.http.dialects.guides import GuideFields, NamedSchema, StructuredOutputs
from lightllm_mp.actors.http.dialects.tokenize_request import DetokenizeBody, TokenizeBody
from lightllm_mp.actors.http.image_inputs import Edge, ImageItem
from lightllm_mp.actors.http.schema import MAX_ITEMS, GenerateBody, InputId, Multimodal, ScoreBody, TokensBody
from lightllm_mp.sampling_parameters import Id, RequestParameters

Object = dict[str, Any]
SchemaText = Object | bool | str
"""A JSON schema, or a text that holds one."""
Ids = Annotated[list[InputId], Meta(min_length=1)]
Prompt = str | Ids
Images = Annotated[list[ImageItem], Meta(max_length=MAX_ITEMS)]
Nothing = None
"""The field is known, and refused unless it is null."""
Empty = Annotated[list[Any], Meta(max_length=0)] | Annotated[Object, Meta(max_length=0)]
"""The field is known, and refused unless it is empty."""
BLOCKS = (
    turns.TextBlock,
    turns.ImageContent,
    turns.ToolResultBlock,
    turns.ThinkingBlock,
    turns.RedactedBlock,
    turns.ToolUseBlock,
)
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
    Multimodal: {"images": Images, "audios": Empty},
    ImageItem: {"data": str | tuple[Edge, Edge]},
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
    chat.Message: {"content": str | list[chat.Part]},
    chat.Part: {"image_url": chat.ImageUrl | str},
    chat.ImageUrl: {"url": str},
    CompletionBody: {"prompt": any_of(str, Ids, list[str], list[Ids])},
    TokenizeBody: {"prompt": str, "messages": Messages, "tools": Tools},
    DetokenizeBody: {"tokens": list[Id]},
    AskedMessages: {
        "messages": Annotated[list[turns.Turn], Meta(min_length=1, max_length=chat.MAX_MESSAGES)],
        "system": str | list[turns.TextBlock],
        "tools": Annotated[list[ClientTool], Meta(max_length=chat.MAX_TOOLS)],
        "cache_control": Any,
        "context_management": Object,
        "mcp_servers": Empty,
        "output_format": Empty,
        "diagnostics": Empty,
    },
    MessagesBody: {"container": Empty},
    OutputConfig: {"format": Empty},
    ClientTool: {"cache_control": Any, "input_examples": Empty},
    turns.Turn: {"content": any_of(str, list_of(*BLOCKS))},
    turns.AnyBlock: {"cache_control": Any},
    turns.TextBlock: {"type": Literal["text"], "citations": Empty},
    turns.ImageContent: {"type": Literal["image"], "source": turns.ImageSource, "transformations": Empty},
    turns.ImageSource: {"data": str, "url": str},
    turns.ThinkingBlock: {"type": Literal["thinking"]},
    turns.RedactedBlock: {"type": Literal["redacted_thinking"]},
    turns.ToolUseBlock: {"type": Literal["tool_use"], "input": Object, "caller": Any},
    turns.ToolResultBlock: {
        "type": Literal["tool_result"],
        "content": any_of(str, list_of(turns.TextBlock, turns.ImageContent)),
    },
}


def deferred(struct: type[Struct]) -> dict[str, Any]:
    """The fields of a struct, and of its bases, that hold more than its types say."""
    found: dict[str, Any] = {}
    for base in reversed(struct.__mro__):
        found |= DEFERRED.get(base, {})
    return found
