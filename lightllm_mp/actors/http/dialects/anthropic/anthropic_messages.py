"""Checks the messages of a chat in Anthropic's form and converts them for chat templates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.actors.front.chat.assistant_turn import AssistantTurn
from lightllm_mp.actors.http.dialects.chat_messages import MAX_MESSAGES, ReadChat, image_of_url
from lightllm_mp.actors.http.dialects.openai_fields import NULL
from lightllm_mp.actors.http.dialects.pieces import PieceReader, is_text, refuse_unless_empty
from lightllm_mp.actors.http.image_inputs import ImageItem

BILLING = "x-anthropic-billing-header:"
"""A block of `system` with this beginning is no prompt: Claude Code's note to Anthropic, different in every request."""


class MessageParam(Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system"]
    content: Raw
    """Text, or a list of blocks."""


class BlockParam(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: str
    cache_control: Raw = NULL
    """Means nothing here: prefixes are always reused."""


class TextBlockParam(BlockParam, frozen=True):
    text: str
    citations: Raw = NULL


class ImageBlockParam(BlockParam, frozen=True):
    source: Raw
    transformations: Raw = NULL


class ThinkingBlockParam(BlockParam, frozen=True):
    thinking: str
    signature: str = ""


class RedactedBlockParam(BlockParam, frozen=True):
    data: str


class ToolUseBlockParam(BlockParam, frozen=True):
    id: str
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    input: Raw
    caller: Raw = NULL


class ToolResultBlockParam(BlockParam, frozen=True):
    tool_use_id: str
    content: Raw = NULL
    is_error: bool = False


class ImageSourceParam(Struct, frozen=True):
    type: str
    data: Raw = NULL
    url: Raw = NULL
    media_type: str = ""


class BlockType(Struct, frozen=True):
    type: str


_turn = msgspec.json.Decoder(MessageParam)
_type = msgspec.json.Decoder(BlockType)
_text = msgspec.json.Decoder(str)
_source = msgspec.json.Decoder(ImageSourceParam)
_BLOCKS: dict[str, type[BlockParam]] = {
    "text": TextBlockParam,
    "image": ImageBlockParam,
    "thinking": ThinkingBlockParam,
    "redacted_thinking": RedactedBlockParam,
    "tool_use": ToolUseBlockParam,
    "tool_result": ToolResultBlockParam,
}
_decoders = {name: msgspec.json.Decoder(block) for name, block in _BLOCKS.items()}
_ALLOWED = {
    "user": frozenset(("text", "image", "tool_result")),
    "assistant": frozenset(("text", "thinking", "redacted_thinking", "tool_use")),
    "system": frozenset(("text",)),
    "tool_result": frozenset(("text", "image")),
}


async def read_turns(system: Raw, messages: Raw) -> ReadChat:
    """Other clients are served between pieces. Raises InvalidRequest."""
    chat = ReadChat()
    if system != NULL and (text := await _system(system)):
        chat.messages.append({"role": "system", "content": text})
    reader, count = PieceReader("messages"), 0
    async for raw in reader.items(messages, MAX_MESSAGES):
        count += 1
        await _TurnReader(reader, chat).read(reader.decode(_turn, raw))
    if not count:
        raise reader.wrong("at least one is needed")
    return chat


async def _system(raw: Raw) -> str:
    reader = PieceReader("system")
    if is_text(raw):
        return reader.decode(_text, raw)
    texts = [block.text async for block in _blocks(reader, raw, "system") if isinstance(block, TextBlockParam)]
    return "\n".join(text for text in texts if not text.startswith(BILLING))


class _TurnReader:
    """Adds a turn to a chat. A turn of the user may be several messages, since each result of a tool is one."""

    def __init__(self, reader: PieceReader, chat: ReadChat) -> None:
        self._reader, self._chat = reader, chat
        self._parts: list[dict[str, str]] = []
        self._turn = AssistantTurn()

    async def read(self, turn: MessageParam) -> None:
        if is_text(turn.content):
            self._chat.messages.append({"role": turn.role, "content": self._reader.decode(_text, turn.content)})
            return
        count = len(self._chat.messages)
        async for block in _blocks(self._reader, turn.content, turn.role):
            await self._block(block)
        if turn.role == "assistant":
            self._turn.texts = [part["text"] for part in self._parts]
            self._chat.messages.append(self._turn.message())
        else:
            self._said(turn.role)
        if len(self._chat.messages) == count:
            raise self._reader.wrong("a message needs its content")

    async def _block(self, block: BlockParam) -> None:
        match block:
            case TextBlockParam():
                refuse_unless_empty(block, "citations", param=self._reader.param)
                self._parts.append({"type": "text", "text": block.text})
            case ImageBlockParam():
                self._parts.append(self._image(block))
            case ThinkingBlockParam():
                self._turn.thoughts.append(block.thinking)
            case RedactedBlockParam():
                self._chat.ignored.add("redacted_thinking")
            case ToolUseBlockParam():
                self._call(block)
            case ToolResultBlockParam():
                self._said("user")
                self._chat.messages.append(await self._result(block))

    def _said(self, role: str) -> None:
        """Makes a message of the parts so far."""
        if self._parts:
            self._chat.messages.append({"role": role, "content": _content(self._parts)})
            self._parts = []

    def _call(self, block: ToolUseBlockParam) -> None:
        arguments = bytes(block.input)
        if arguments[:1] != b"{":
            raise self._reader.wrong("the input of a tool_use is an object")
        self._turn.call(block.id, block.name, arguments.decode())

    async def _result(self, block: ToolResultBlockParam) -> dict[str, Any]:
        content: str | list[dict[str, str]] = ""
        if is_text(block.content):
            content = self._reader.decode(_text, block.content)
        elif block.content != NULL:
            parts = []
            async for inner in _blocks(self._reader, block.content, "tool_result"):
                match inner:
                    case TextBlockParam():
                        parts.append({"type": "text", "text": inner.text})
                    case ImageBlockParam():
                        parts.append(self._image(inner))
            content = _content(parts)
        if block.is_error:  # templates have no other form for it
            content = (
                "Error: " + content if isinstance(content, str) else [{"type": "text", "text": "Error:"}, *content]
            )
        return {"role": "tool", "content": content, "tool_call_id": block.tool_use_id}

    def _image(self, block: ImageBlockParam) -> dict[str, str]:
        refuse_unless_empty(block, "transformations", param=self._reader.param)
        source = self._reader.decode(_source, block.source)
        if source.type == "base64" and is_text(source.data):
            self._chat.images.append(ImageItem("base64", source.data))
        elif source.type == "url" and is_text(source.url):
            self._chat.images.append(image_of_url(source.url))
        else:
            raise self._reader.wrong("an image's source is base64 with `data`, or url with `url`")
        return {"type": "image"}


async def _blocks(reader: PieceReader, raw: Raw, place: str) -> AsyncIterator[BlockParam]:
    """The blocks of a message, or of a tool's result. Raises InvalidRequest for blocks that are not allowed there."""
    async for item in reader.items(raw):
        kind = reader.decode(_type, item).type
        if kind not in _ALLOWED[place]:
            raise reader.wrong(f"a block of type {kind[:32]!r} is not supported in {place}")
        yield reader.lenient(_decoders[kind], item)


def _content(parts: list[dict[str, str]]) -> str | list[dict[str, str]]:
    """One text if there is nothing else."""
    return parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts
