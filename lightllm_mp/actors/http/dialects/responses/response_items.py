"""Checks the input items of a response in OpenAI's form and converts them for chat templates."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.actors.front.chat.assistant_turn import AssistantTurn
from lightllm_mp.actors.http.dialects.chat_messages import MAX_MESSAGES, ReadChat, image_of_url
from lightllm_mp.actors.http.dialects.openai_fields import NULL
from lightllm_mp.actors.http.dialects.pieces import PieceReader, is_text
from lightllm_mp.errors import InvalidRequest

PARAM = "input"
SEAL = "lightllm_mp:"
LEADERS = ("system", "developer")


class InputItem(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: str = "message"
    id: str | None = None
    status: str | None = None


class MessageItem(InputItem, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: Raw
    """Text, or a list of parts."""
    phase: str | None = None
    """A label that comes back; it means nothing here."""


class CallItem(InputItem, frozen=True, kw_only=True, forbid_unknown_fields=True):
    call_id: str
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    arguments: str
    namespace: str | None = None


class CallOutputItem(InputItem, frozen=True, kw_only=True, forbid_unknown_fields=True):
    call_id: str
    output: Raw


class ReasoningItem(InputItem, frozen=True, kw_only=True, forbid_unknown_fields=True):
    summary: list[ReasoningPart] = []
    content: list[ReasoningPart] | None = None
    encrypted_content: str | None = None
    """For clients that leave `content` out; see `sealed`."""


class ReasoningPart(Struct, frozen=True):
    text: str
    type: str = "reasoning_text"


class InputPart(Struct, frozen=True, forbid_unknown_fields=True):
    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Raw = NULL
    detail: str | None = None


class ItemType(Struct, frozen=True):
    type: str | None = None


_messages = msgspec.json.Decoder(list[Raw])
_type = msgspec.json.Decoder(ItemType)
_text = msgspec.json.Decoder(str)
_part = msgspec.json.Decoder(InputPart)
_message = msgspec.json.Decoder(MessageItem)
_call = msgspec.json.Decoder(CallItem)
_output = msgspec.json.Decoder(CallOutputItem)
_reasoning = msgspec.json.Decoder(ReasoningItem)


async def read_input(raw: Raw) -> ReadChat:
    """The content of the items. Other clients are served between pieces. Raises InvalidRequest."""
    chat, reader = ReadChat(), PieceReader(PARAM)
    if is_text(raw):
        chat.messages.append({"role": "user", "content": reader.decode(_text, raw)})
    else:
        items = _ItemReader(reader, chat)
        async for item in reader.items(raw, MAX_MESSAGES):
            await items.read(item)
        items.end_turn()
    return chat


def instructed(messages: list[Any], instructions: str) -> list[Any]:
    """The messages after the instructions. The first messages of the system and the developer become one: templates
    often take one, and only as the first."""
    texts, at = [instructions] if instructions else [], 0
    while at < len(messages) and _leads(messages[at]):
        texts.append(messages[at]["content"])
        at += 1
    role = "system" if instructions else messages[0]["role"] if at else ""
    return [*([{"role": role, "content": "\n\n".join(texts)}] if texts else []), *messages[at:]]


def _leads(message: Any) -> bool:
    return isinstance(message, dict) and message["role"] in LEADERS and isinstance(message["content"], str)


def uninstructed(messages: bytes, instructions: str) -> list[Any]:
    """The messages of a prompt (JSON) without the instructions: they hold for one response, not for those after it."""
    first, *rest = _messages.decode(messages)
    message = msgspec.json.decode(first)
    if instructions:
        message |= {"role": "developer", "content": message["content"][len(instructions) :].removeprefix("\n\n")}
    return [message, *rest] if message["content"] or not instructions else rest


class _ItemReader:
    """Adds items to a chat. Neighbours that belong to one turn of the assistant are one message."""

    def __init__(self, reader: PieceReader, chat: ReadChat) -> None:
        self._reader, self._chat = reader, chat
        self._turn: AssistantTurn | None = None

    async def read(self, raw: Raw) -> None:
        reader = self._reader
        match reader.decode(_type, raw).type:
            case None | "message":
                await self._message(reader.lenient(_message, raw))
            case "function_call":
                call = reader.lenient(_call, raw)
                name = qualified(call.namespace, call.name) if call.namespace else call.name
                self._open_turn().call(call.call_id, name, call.arguments or "{}")
            case "function_call_output":
                output = reader.lenient(_output, raw)
                self.end_turn()
                content = await self._content(output.output)
                self._chat.messages.append({"role": "tool", "content": content, "tool_call_id": output.call_id})
            case "reasoning":
                item = reader.lenient(_reasoning, raw)
                self._open_turn().thoughts += self._thoughts(item)
            case kind:
                raise reader.wrong(f"an item of type {kind[:32]!r} is not supported here")

    def _thoughts(self, item: ReasoningItem) -> list[str]:
        if item.encrypted_content is not None and not item.content:
            text = unsealed(item.encrypted_content)
            if text is None:
                raise self._reader.wrong("the encrypted_content of this reasoning is not of this server")
            return [text]
        return [part.text for part in item.content or item.summary]

    def end_turn(self) -> None:
        if self._turn is not None:
            self._chat.messages.append(self._turn.message())
            self._turn = None

    def _open_turn(self) -> AssistantTurn:
        if self._turn is None:
            self._turn = AssistantTurn()
        return self._turn

    async def _message(self, item: MessageItem) -> None:
        content = await self._content(item.content)
        if item.role != "assistant":
            self.end_turn()
            self._chat.messages.append({"role": item.role, "content": content})
            return
        turn = self._open_turn()
        if turn.texts and not turn.calls:
            self.end_turn()
            turn = self._open_turn()
        turn.texts.append(content if isinstance(content, str) else _only_text(content))

    async def _content(self, raw: Raw) -> str | list[dict[str, str]]:
        if is_text(raw):
            return self._reader.decode(_text, raw)
        parts = [self._part(item) async for item in self._reader.items(raw)]
        return parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts

    def _part(self, raw: Raw) -> dict[str, str]:
        part = self._reader.lenient(_part, raw)
        match part:
            case InputPart(type="input_text" | "output_text" | "text", text=str(text)):
                return {"type": "text", "text": text}
            case InputPart(type="refusal", refusal=str(text)):
                return {"type": "text", "text": text}
            case InputPart(type="input_image") if is_text(part.image_url):
                if part.detail not in (None, "auto"):
                    self._chat.ignored.add("input_image.detail")
                self._chat.images.append(image_of_url(part.image_url))
                return {"type": "image"}
            case _:
                raise self._reader.wrong(f"a part of type {part.type[:32]!r} is not supported here, or is incomplete")


def qualified(namespace: str, name: str) -> str:
    """The model's name of a function in a namespace."""
    return f"{namespace}__{name}"


def sealed(thoughts: str) -> str:
    """`encrypted_content` of reasoning, for clients that send it back instead of `content`. It is no secret, since
    `content` shows the same; so it is encoded and not encrypted."""
    return SEAL + base64.b64encode(thoughts.encode()).decode()


def unsealed(text: str) -> str | None:
    """None: another server made it."""
    try:
        return base64.b64decode(text.removeprefix(SEAL), validate=True).decode() if text.startswith(SEAL) else None
    except ValueError:
        return None


def _only_text(parts: list[dict[str, str]]) -> str:
    if any(part["type"] != "text" for part in parts):
        raise InvalidRequest("input: a message of the assistant is text", param=PARAM)
    return "".join(part["text"] for part in parts)
