"""Turns a request's `multimodal_params.images`, in LightLLM's format, into uploads.

An entry is `{"type": "base64", "data": ...}` (plain base64, no `data:` prefix; white space is ignored), or `{"type":
"url", "data": "https://..."}`, or, for counting tokens only, `{"type": "image_size", "data": [width, height]}`. The
first two may also give `image_size`, so that tokens are counted without reading the image.
"""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.actors.front.image_files import PARAM, TEXT_ONLY, ImageLane, NoImageLane, Upload
from lightllm_mp.actors.http import schema
from lightllm_mp.actors.http.image_fetch import Fetcher
from lightllm_mp.config import MultimodalConfig
from lightllm_mp.errors import InvalidRequest, PayloadTooLarge
from lightllm_mp.messages import ImageInfo

WHITE = str.maketrans("", "", " \t\r\n")
PIECE = 1 << 18
"""Characters of base64 that are decoded at once."""
SHORT = 1 << 16
"""Up to this many bytes are checked in the event loop; more in a thread."""

Edge = Annotated[int, Meta(ge=1, le=1 << 20)]


class ImageItem(Struct, frozen=True):
    """One image as the client sends it."""

    type: Literal["base64", "url", "image_size"]
    data: str | tuple[Edge, Edge] | None = None
    image_size: tuple[Edge, Edge] | None = None


_items = msgspec.json.Decoder(ImageItem)


class ImageInputs:
    """Turns image items into uploads. Calls `fetched` with the seconds that each fetch of an image took."""

    def __init__(
        self,
        config: MultimodalConfig,
        lane: ImageLane | NoImageLane,
        fetched: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._config, self._lane, self._fetched = config, lane, fetched
        self._fetcher = Fetcher(config)

    def arriving(self, tenant: bytes) -> AbstractContextManager[Callable[[int], None]]:
        """Counts bytes being received; see image_files.Files."""
        return self._lane.arriving(tenant)

    async def uploads(
        self, media: schema.Multimodal | None, tenant: bytes, take: Callable[[int], None], payer: bytes = b""
    ) -> tuple[Upload, ...]:
        """The images in order. Each distinct URL is fetched once; the first bad image cancels the other fetches.
        `payer`: whose share of connections they take. Raises InvalidRequest, PayloadTooLarge, UnsupportedMedia or
        Overloaded."""
        items = self._read(media)
        if not items:
            return ()
        tasks = {item: asyncio.create_task(self._upload(item, tenant, take, payer)) for item in dict.fromkeys(items)}
        try:
            await asyncio.gather(*tasks.values())
        except BaseException:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            raise
        return tuple(tasks[item].result() for item in items)

    async def infos(self, media: schema.Multimodal | None, tenant: bytes, payer: bytes = b"") -> tuple[ImageInfo, ...]:
        """The same for counting tokens: reads only images without a given size."""
        found = []
        for item in self._read(media):
            size = item.data if item.type == "image_size" else item.image_size
            if isinstance(size, tuple):
                found.append(self._lane.judge.described(*size))
            else:
                with self.arriving(tenant) as take:
                    found.append((await self._upload(item, tenant, take, payer)).image)
        return tuple(found)

    def _read(self, media: schema.Multimodal | None) -> Sequence[ImageItem]:
        if media is None:
            return []
        if schema.items(media.audios, PARAM + ".audios"):
            raise InvalidRequest("sound is not supported", param=PARAM)
        raw = schema.items(media.images, PARAM + ".images")
        if raw and not self._lane.takes_images:
            raise InvalidRequest(TEXT_ONLY, param=PARAM)
        if len(raw) > (most := self._config.max_images_per_request):
            raise InvalidRequest(f"the request has {len(raw)} images, at most {most} are served", param=PARAM)
        return [item(one) for one in raw]

    async def _upload(self, item: ImageItem, tenant: bytes, take: Callable[[int], None], payer: bytes) -> Upload:
        if not isinstance(item.data, str):
            raise InvalidRequest(f"an image of type {item.type} needs its data as text", param=PARAM)
        judge, most = self._lane.judge, self._config.max_bytes_per_image
        if item.type == "url":
            begin = perf_counter()
            data = await self._fetcher.fetch(item.data, take, payer)
            self._fetched(perf_counter() - begin)
            return await _apart(len(data), lambda: judge.upload(data, tenant))
        text = item.data
        if len(text) * 3 // 4 > most + 3:
            raise PayloadTooLarge(f"an image is larger than {most} bytes", param=PARAM)
        take(len(text) * 3 // 4)
        return await _apart(len(text), lambda: judge.upload(decoded(text), tenant))


def item(raw: Raw) -> ImageItem:
    """One decoded item. Raises InvalidRequest."""
    return schema.decode(_items, raw, PARAM + ".images")


async def _apart(size: int, work: Callable[[], Upload]) -> Upload:
    """Run `work` in a thread if `size` is above SHORT, so that it does not block the loop."""
    return work() if size <= SHORT else await asyncio.to_thread(work)


def decoded(text: str) -> bytes:
    """The bytes of a base64 text. Raises InvalidRequest if it is not base64."""
    if text.lstrip()[:5].lower() == "data:":
        raise InvalidRequest("an image's base64 must be sent without the prefix `data:...;base64,`", param=PARAM)
    found, rest, padded = bytearray(), "", False
    try:
        for at in range(0, len(text), PIECE):  # in pieces, because other threads wait for each
            rest += text[at : at + PIECE].translate(WHITE)
            whole = len(rest) if at + PIECE >= len(text) else len(rest) // 4 * 4
            if padded and rest:
                raise ValueError
            piece, rest = rest[:whole], rest[whole:]
            found += binascii.a2b_base64(piece, strict_mode=True)
            padded = piece.endswith("=")
    except ValueError:  # binascii.Error is a subclass
        raise InvalidRequest("an image's data is not base64", param=PARAM) from None
    return bytes(found)
