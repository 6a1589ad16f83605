"""Reads a large field of a body in pieces: other clients are served in between, and errors name the field."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from lightllm_mp.actors.http import schema
from lightllm_mp.errors import InvalidRequest

PIECE = 1 << 16
"""Bytes that are decoded without a pause for other clients."""
MAX_ITEMS = 10_000
"""Of a list: messages of a chat, parts of a message."""
MAX_LENIENT = 1 << 20
"""Bytes of an object whose fields are read one by one."""
UNKNOWN = "unknown field"
LEAST = 64
"""Least bytes that a short piece counts for: it takes as long."""

T = TypeVar("T")
S = TypeVar("S", bound=Struct)
_list = msgspec.json.Decoder(list[Raw])
_fields = msgspec.json.Decoder(dict[str, Raw])


@cache
def _bounded() -> msgspec.json.Decoder[Any]:
    """Of a list. It stops at the first item too many."""
    fields = [(f"item{number}", Raw | UnsetType, UNSET) for number in range(MAX_ITEMS)]
    return msgspec.json.Decoder(msgspec.defstruct("_Bounded", fields, array_like=True, forbid_unknown_fields=True))


class PieceReader:
    """`param`: the name of the field."""

    def __init__(self, param: str) -> None:
        self.param = param
        self._since = 0

    def decode(self, decoder: msgspec.json.Decoder[T], raw: Raw) -> T:
        """Raises InvalidRequest."""
        try:
            return schema.decode(decoder, raw, self.param)
        except InvalidRequest as error:
            error.param = self.param
            raise

    def lenient(self, decoder: msgspec.json.Decoder[S], raw: Raw) -> S:
        """Like `decode`, for a struct that forbids unknown fields; empty ones are allowed: clients send answers back
        unchanged, with fields of other servers."""
        try:
            return self.decode(decoder, raw)
        except InvalidRequest as error:
            if UNKNOWN not in error.message or memoryview(raw).nbytes > MAX_LENIENT:
                raise
        known = decoder.type.__struct_fields__
        fields = self.decode(_fields, raw).items()
        kept = {name: value for name, value in fields if name in known or not is_empty(value)}
        return self.decode(decoder, Raw(msgspec.json.encode(kept)))

    async def items(self, raw: Raw, most: int = MAX_ITEMS) -> AsyncIterator[Raw]:
        """The items of a list. Raises InvalidRequest for more than `most`, or MAX_ITEMS."""
        await self._pause(raw)
        if memoryview(raw).nbytes > PIECE:
            found = [item for item in msgspec.structs.astuple(self.decode(_bounded(), raw)) if item is not UNSET]
        else:
            found = self.decode(_list, raw)
        if len(found) > most:
            raise self.wrong(f"more than {most} items")
        for item in found:
            await self._pause(item)
            yield item

    def wrong(self, message: str) -> InvalidRequest:
        return InvalidRequest(f"{self.param}: {message}", param=self.param)

    async def _pause(self, raw: Raw) -> None:
        self._since += max(memoryview(raw).nbytes, LEAST)
        if self._since > PIECE:
            self._since = 0
            await asyncio.sleep(0)


def is_text(raw: Raw) -> bool:
    return bytes(memoryview(raw)[:1]) == b'"'


def is_list(raw: Raw) -> bool:
    return bytes(memoryview(raw)[:1]) == b"["


def is_empty(raw: Raw) -> bool:
    return bytes(memoryview(raw)[:64]).replace(b" ", b"") in (b"null", b"[]", b"{}", b'""')


def refuse_unless_empty(body: Any, *names: str, param: str | None = None) -> None:
    """Raises InvalidRequest for one of these fields (Raw) that holds anything. `param`: where `body` stands."""
    for name in names:
        if not is_empty(getattr(body, name)):
            where = f"{param}: " if param else ""
            raise InvalidRequest(f"{where}{name} is not supported", param=param or name)
