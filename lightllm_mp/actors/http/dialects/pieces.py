"""Reads a large field of a body piece by piece: other clients are served in between, and errors name the field."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from lightllm_mp.actors.http import schema
from lightllm_mp.errors import InvalidRequest

PIECE = 1 << 16
"""Bytes that are decoded while other clients wait."""
LEAST = 64
"""Bytes that a short piece counts as: it takes as long."""

T = TypeVar("T")
_list = msgspec.json.Decoder(list[Raw])


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

    async def items(self, raw: Raw, most: int | None = None) -> AsyncIterator[Raw]:
        """The items of a list. Raises InvalidRequest for more than `most`."""
        await self._pause(raw)
        found = self.decode(_list, raw)
        if most is not None and len(found) > most:
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


def refuse_unless_empty(body: Any, *names: str, param: str | None = None) -> None:
    """Raises InvalidRequest for one of these fields (Raw) that holds anything. `param`: where `body` stands."""
    for name in names:
        if bytes(memoryview(getattr(body, name))[:64]).replace(b" ", b"") not in (b"null", b"[]", b"{}", b'""'):
            where = f"{param}: " if param else ""
            raise InvalidRequest(f"{where}{name} is not supported", param=param or name)
