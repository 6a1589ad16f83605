"""Checks the messages of a chat in OpenAI's form and converts them for chat templates."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.actors.front.chat.functions import FunctionTool, ToolCall
from lightllm_mp.actors.http import schema
from lightllm_mp.actors.http.dialects.openai_fields import NULL
from lightllm_mp.actors.http.dialects.pieces import PieceReader, is_empty, is_list, is_text
from lightllm_mp.actors.http.image_inputs import MOST_FRAMES, ImageItem, MediaItem, VideoItem
from lightllm_mp.errors import InvalidRequest

MAX_MESSAGES = 10_000
MAX_TOOLS = 128
MAX_TOOLS_BYTES = 1 << 19
PARAM = "messages"
JOINED = b'"data:video/jpeg;base64,'
"""The beginning of a text with several frames."""


class Message(Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Raw = NULL
    """Text, or a list of parts."""
    name: str | None = None
    tool_calls: Raw = NULL
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """Newer name of it."""
    refusal: str | None = None


class ImageUrl(Struct, frozen=True, forbid_unknown_fields=True):
    url: Raw
    detail: Literal["auto", "low", "high", "original"] | None = None


class VideoUrl(Struct, frozen=True, forbid_unknown_fields=True):
    url: Raw


class Part(Struct, frozen=True):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Raw = NULL
    video_url: Raw = NULL
    video: Raw = NULL
    """A file's address, or a list of the addresses of frames."""
    fps: float | None = None
    """Frames per second of a list of frames."""


class ReadChat(Struct):
    """The content of the messages."""

    messages: list[dict[str, Any]] = []
    """For the template."""
    images: list[MediaItem] = []
    """Images and videos in order."""
    ignored: set[str] = set()


_message = msgspec.json.Decoder(Message)
_text = msgspec.json.Decoder(str)
_part = msgspec.json.Decoder(Part)
_call = msgspec.json.Decoder(ToolCall)
_image_url = msgspec.json.Decoder(ImageUrl)
_video_url = msgspec.json.Decoder(VideoUrl)
_tools = msgspec.json.Decoder(Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None)


async def read_messages(raw: Raw) -> ReadChat:
    """Other clients are served between pieces. Raises InvalidRequest."""
    chat, reader = ReadChat(), PieceReader(PARAM)
    async for item in reader.items(raw, MAX_MESSAGES):
        chat.messages.append(await _read_message(reader, item, chat))
    if not chat.messages:
        raise reader.wrong("at least one is needed")
    return chat


def read_tools(raw: Raw) -> list[FunctionTool]:
    """Raises InvalidRequest."""
    if memoryview(raw).nbytes > MAX_TOOLS_BYTES:
        raise InvalidRequest(f"tools are longer than {MAX_TOOLS_BYTES} bytes", param="tools")
    return schema.decode(_tools, raw, "tools") or []


async def _read_message(reader: PieceReader, raw: Raw, chat: ReadChat) -> dict[str, Any]:
    message = reader.lenient(_message, raw)
    content: Any = None
    if is_list(message.content):
        content = [_content(reader, item, chat) async for item in reader.items(message.content)]
    elif message.content != NULL:
        content = reader.decode(_text, message.content)
    found: dict[str, Any] = {"role": message.role, "content": content}
    if message.role == "tool":
        if message.content == NULL:
            raise reader.wrong("a tool's answer needs its content")
        found["tool_call_id"] = message.tool_call_id or ""
    if not is_empty(message.tool_calls):
        if message.role != "assistant":
            raise reader.wrong("only an assistant calls tools")
        calls = reader.items(message.tool_calls)
        found["tool_calls"] = [msgspec.to_builtins(reader.decode(_call, item)) async for item in calls]
    elif content is None:
        if message.role != "assistant" and message.content == NULL:
            raise reader.wrong("a message needs its content")
        found["content"] = message.refusal or ""
    if message.name is not None:
        found["name"] = message.name
    if (reasoning := message.reasoning_content or message.reasoning) is not None:
        found["reasoning_content"] = reasoning
    return found


def _content(reader: PieceReader, raw: Raw, chat: ReadChat) -> dict[str, str]:
    part = reader.decode(_part, raw)
    match part.type:
        case "text" | "input_text" | "output_text" if part.text is not None:
            return {"type": "text", "text": part.text}
        case "refusal" if part.refusal is not None:
            return {"type": "text", "text": part.refusal}
        case "image_url" | "input_image":
            chat.images.append(_image(reader, part.image_url, chat))
            return {"type": "image"}
        case "video_url" | "video":
            chat.images.append(_video(reader, part))
            return {"type": "video"}
    raise reader.wrong(f"a part of type {part.type[:32]!r} is not supported here")


def _image(reader: PieceReader, raw: Raw, chat: ReadChat) -> ImageItem:
    if not is_text(raw):
        given = reader.decode(_image_url, raw)
        raw = given.url
        if given.detail not in (None, "auto"):
            chat.ignored.add("image_url.detail")
    return image_of_url(raw)


def _video(reader: PieceReader, part: Part) -> VideoItem:
    """Frames are a list of addresses or, as vLLM takes them, one `data:` address with a comma between two."""
    raw = part.video if part.type == "video" else part.video_url
    if not (is_text(raw) or is_list(raw)):
        raw = reader.decode(_video_url, raw).url
    if is_list(raw):
        frames = [image_of_url(one) for one in schema.items(raw, PARAM, MOST_FRAMES)]
        return VideoItem("frames", Raw(msgspec.json.encode(frames)), part.fps)
    if bytes(memoryview(raw)[:64]).replace(b"\\/", b"/").lower().startswith(JOINED):
        joined = bytes(raw)[1:-1].split(b",", MOST_FRAMES + 1)[1:]
        frames = [ImageItem("base64", Raw(b'"' + frame + b'"')) for frame in joined]
        return VideoItem("frames", Raw(msgspec.json.encode(frames)), part.fps)
    file = image_of_url(raw)
    return VideoItem("url" if file.type == "url" else "base64", file.data)


def image_of_url(raw: Raw) -> ImageItem:
    """The item of a JSON text: `data:...;base64,...` or an http(s) address. Raises InvalidRequest."""
    head = bytes(memoryview(raw)[:256]).replace(b"\\/", b"/")
    if head[:6].lower() != b'"data:':
        return ImageItem("url", raw)
    comma = bytes(memoryview(raw)[:256]).find(b",")
    if comma < 0 or b";base64" not in head:
        raise InvalidRequest("an image's data: address must be base64: data:image/png;base64,...", param=PARAM)
    return ImageItem("base64", Raw(b'"' + memoryview(raw)[comma + 1 :]))
