"""The messages of a chat in OpenAI's form: checked, and brought into the form that chat templates take."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.actors.front.chat.functions import FunctionTool, ToolCall
from lightllm_mp.actors.http import schema
from lightllm_mp.actors.http.dialects.openai_fields import NULL
from lightllm_mp.actors.http.image_inputs import ImageItem
from lightllm_mp.errors import InvalidRequest

MAX_MESSAGES = 10_000
MAX_TOOLS = 128
MAX_TOOLS_BYTES = 1 << 19
PIECE = 1 << 16
"""Bytes of messages that are decoded while other clients wait."""
PARAM = "messages"

T = TypeVar("T")


class Message(Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Raw = NULL
    """Text, or a list of parts."""
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """Newer name of it."""
    refusal: str | None = None


class ImageUrl(Struct, frozen=True, forbid_unknown_fields=True):
    url: Raw
    detail: Literal["auto", "low", "high", "original"] | None = None


class Part(Struct, frozen=True):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Raw = NULL


class ReadChat(Struct):
    """What the messages hold."""

    messages: list[dict[str, Any]] = []
    """For the template."""
    images: list[ImageItem] = []
    ignored: set[str] = set()


_list = msgspec.json.Decoder(list[Raw])
_message = msgspec.json.Decoder(Message)
_keys = msgspec.json.Decoder(dict[str, Raw])
_text = msgspec.json.Decoder(str)
_part = msgspec.json.Decoder(Part)
_image_url = msgspec.json.Decoder(ImageUrl)
_tools = msgspec.json.Decoder(Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None)
_KNOWN = frozenset(Message.__struct_fields__)
_EMPTY = (b"null", b"[]", b"{}", b'""')


async def read_messages(raw: Raw) -> ReadChat:
    """Other clients are served between pieces. Raises InvalidRequest."""
    found, since = ReadChat(), 0
    if memoryview(raw).nbytes > PIECE:
        await asyncio.sleep(0)
    items = _decode(_list, raw)
    if not 1 <= len(items) <= MAX_MESSAGES:
        raise InvalidRequest(f"a chat has from 1 to {MAX_MESSAGES} messages", param=PARAM)
    for item in items:
        since += memoryview(item).nbytes
        if since > PIECE:
            since = 0
            await asyncio.sleep(0)
        found.messages.append(_read_message(item, found))
    return found


def read_tools(raw: Raw) -> list[FunctionTool]:
    """Raises InvalidRequest."""
    if memoryview(raw).nbytes > MAX_TOOLS_BYTES:
        raise InvalidRequest(f"tools are longer than {MAX_TOOLS_BYTES} bytes", param="tools")
    return schema.decode(_tools, raw, "tools") or []


def _read_message(raw: Raw, chat: ReadChat) -> dict[str, Any]:
    message = _decode(_message, raw)
    for name, value in _decode(_keys, raw).items():
        # Clients send answers back as they got them, with fields of other servers that are empty.
        if name not in _KNOWN and bytes(value) not in _EMPTY:
            raise InvalidRequest(f"messages: {name[:64]!r} is not a field that this server knows", param=PARAM)
    content = list(_content(message, chat)) if _is_list(message.content) else _string(message.content)
    found: dict[str, Any] = {"role": message.role, "content": content}
    if message.role == "tool":
        if message.content == NULL:
            raise InvalidRequest("messages: a tool's answer needs its content", param=PARAM)
        found["tool_call_id"] = message.tool_call_id or ""
    if message.tool_calls:
        if message.role != "assistant":
            raise InvalidRequest("messages: only an assistant calls tools", param=PARAM)
        found["tool_calls"] = [msgspec.to_builtins(call) for call in message.tool_calls]
    elif content is None:
        if message.role != "assistant" and message.content == NULL:
            raise InvalidRequest("messages: a message needs its content", param=PARAM)
        found["content"] = message.refusal or ""
    if message.name is not None:
        found["name"] = message.name
    if (reasoning := message.reasoning_content or message.reasoning) is not None:
        found["reasoning_content"] = reasoning
    return found


def _content(message: Message, chat: ReadChat) -> Iterator[dict[str, str]]:
    for raw in _decode(_list, message.content):
        part = _decode(_part, raw)
        match part.type:
            case "text" | "input_text" | "output_text" if part.text is not None:
                yield {"type": "text", "text": part.text}
            case "refusal" if part.refusal is not None:
                yield {"type": "text", "text": part.refusal}
            case "image_url" | "input_image":
                chat.images.append(_image(part.image_url, chat))
                yield {"type": "image"}
            case kind:
                raise InvalidRequest(f"messages: a part of type {kind[:32]!r} is not supported here", param=PARAM)


def _image(raw: Raw, chat: ReadChat) -> ImageItem:
    if bytes(memoryview(raw)[:1]) == b"{":
        given = _decode(_image_url, raw)
        raw = given.url
        if given.detail not in (None, "auto"):
            chat.ignored.add("image_url.detail")
    return image_of_url(raw)


def image_of_url(raw: Raw) -> ImageItem:
    """The item of a JSON text: `data:image/...;base64,...` or an http(s) address. Raises InvalidRequest."""
    head = bytes(memoryview(raw)[:256]).replace(b"\\/", b"/")
    if head[:6].lower() != b'"data:':
        return ImageItem("url", raw)
    comma = bytes(memoryview(raw)[:256]).find(b",")
    if comma < 0 or b";base64" not in head:
        raise InvalidRequest("an image's data: address must be base64: data:image/png;base64,...", param=PARAM)
    return ImageItem("base64", Raw(b'"' + memoryview(raw)[comma + 1 :]))


def _decode(decoder: msgspec.json.Decoder[T], raw: Raw) -> T:
    try:
        return schema.decode(decoder, raw, PARAM)
    except InvalidRequest as error:
        error.param = PARAM
        raise


def _is_list(raw: Raw) -> bool:
    return bytes(memoryview(raw)[:1]) == b"["


def _string(raw: Raw) -> str | None:
    return None if raw == NULL else _decode(_text, raw)
