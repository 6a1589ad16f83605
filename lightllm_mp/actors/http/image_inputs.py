"""Turns a request's `multimodal_params`, images in LightLLM's format and videos, into uploads.

An entry is `{"type": "base64", "data": ...}` (plain base64, no `data:` prefix; white space is ignored), or `{"type":
"url", "data": "https://..."}`, or, for counting tokens only, `{"type": "image_size", "data": [width, height]}`. The
first two may also give `image_size`, so that tokens are counted without reading the image.

An entry of `videos` is a file, `base64` or `url` as for an image, or `{"type": "frames", "data": [IMAGE, ...], "fps":
2.0}` with images of the first two types.
"""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.actors.front.image_files import PARAM, TEXT_ONLY, ImageLane, NoImageLane, Upload
from lightllm_mp.actors.http import schema
from lightllm_mp.actors.http.image_fetch import MAX_URL, Fetcher
from lightllm_mp.config import MultimodalConfig
from lightllm_mp.errors import InvalidRequest, PayloadTooLarge
from lightllm_mp.messages import ImageInfo
from lightllm_mp.vision.video.video_files import pack_frames

WHITE = str.maketrans("", "", " \t\r\n")
PIECE = 1 << 18
"""Bytes of base64 that are decoded at once."""
MOST_FRAMES = 768
"""Most frames of a list."""
SHORT = 1 << 16
"""Up to this many bytes are checked in the event loop; more in a thread."""

T = TypeVar("T")
Edge = Annotated[int, Meta(ge=1, le=1 << 20)]


class ImageItem(Struct, frozen=True):
    """One image as the client sends it."""

    type: Literal["base64", "url", "image_size"]
    data: Raw = Raw(b"null")
    image_size: tuple[Edge, Edge] | None = None

    @property
    def size(self) -> tuple[Edge, Edge] | None:
        """Width and height in pixels, if it gives them. Raises InvalidRequest."""
        return schema.decode(_size, self.data, PARAM + ".images.data") if self.type == "image_size" else self.image_size


class VideoItem(Struct, frozen=True):
    """One video as the client sends it."""

    type: Literal["base64", "url", "frames"]
    data: Raw = Raw(b"null")
    fps: Annotated[float, Meta(gt=0.0, le=1000.0)] | None = None
    """Frames per second of a list of frames."""


MediaItem = ImageItem | VideoItem

_items = msgspec.json.Decoder(ImageItem)
_videos = msgspec.json.Decoder(VideoItem)
_size = msgspec.json.Decoder(tuple[Edge, Edge])
_text = msgspec.json.Decoder(str)


class ImageInputs:
    """Turns items into uploads. Calls `fetched` with the seconds that each fetch of an image took."""

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
        """The images in order, then the videos. Each distinct URL is fetched once; the first bad one cancels the other
        fetches. `payer`: whose share of connections they take. Raises InvalidRequest, PayloadTooLarge, UnsupportedMedia
        or Overloaded."""
        return await self.upload_all(await self._read(media), tenant, take, payer)

    async def upload_all(
        self, items: Sequence[MediaItem], tenant: bytes, take: Callable[[int], None], payer: bytes = b""
    ) -> tuple[Upload, ...]:
        """Like `uploads`."""
        if not items:
            return ()
        self._check_number(len(items))
        keys = [(type(one), bytes(one.data)) if one.type == "url" else number for number, one in enumerate(items)]
        distinct = dict(zip(keys, items, strict=True))
        found = await _all(self._upload(one, tenant, take, payer) for one in distinct.values())
        uploads = dict(zip(distinct, found, strict=True))
        return tuple(uploads[key] for key in keys)

    async def infos(self, media: schema.Multimodal | None, tenant: bytes, payer: bytes = b"") -> tuple[ImageInfo, ...]:
        """The same for counting tokens: reads only images without a given size."""
        return await self.info_all(await self._read(media), tenant, payer)

    async def info_all(self, items: Sequence[MediaItem], tenant: bytes, payer: bytes = b"") -> tuple[ImageInfo, ...]:
        """Like `infos`."""
        self._check_number(len(items))
        found = []
        for item in items:
            if isinstance(item, ImageItem) and (size := item.size):
                found.append(self._lane.judge.described(*size))
            else:
                with self.arriving(tenant) as take:
                    found.append((await self._upload(item, tenant, take, payer)).image)
        return tuple(found)

    async def _read(self, media: schema.Multimodal | None) -> Sequence[MediaItem]:
        """Other clients are served between two large ones."""
        if media is None:
            return []
        if schema.items(media.audios, PARAM + ".audios"):
            raise InvalidRequest("sound is not supported", param=PARAM)
        found: list[MediaItem] = []
        for name, raw in (("images", media.images), ("videos", media.videos)):
            await _pause(raw)
            entries = schema.items(raw, f"{PARAM}.{name}")
            self._check_number(len(found) + len(entries))
            for one in entries:
                await _pause(one)
                found.append(item(one) if name == "images" else schema.decode(_videos, one, PARAM + ".videos"))
        return found

    def _check_number(self, count: int) -> None:
        if count and not self._lane.takes_images:
            raise InvalidRequest(TEXT_ONLY, param=PARAM)
        if count > (most := self._config.max_images_per_request):
            raise InvalidRequest(f"the request has {count} images, at most {most} are served", param=PARAM)

    async def _upload(self, item: MediaItem, tenant: bytes, take: Callable[[int], None], payer: bytes) -> Upload:
        judge = self._lane.judge
        if isinstance(item, ImageItem):
            file = await self._file(item, take, payer)
            return await _apart(len(file), lambda: judge.upload(file, tenant))
        if item.type == "frames":
            frames = [schema.decode(_items, raw, PARAM) for raw in schema.items(item.data, PARAM, MOST_FRAMES)]
            files = await _all(self._file(frame, take, payer) for frame in frames)
            video = pack_frames(files, item.fps)
        else:
            video = await self._file(item, take, payer)
        return await _apart(len(video), lambda: judge.video(video, tenant))

    async def _file(self, item: MediaItem, take: Callable[[int], None], payer: bytes) -> bytes:
        most, data = self._config.max_bytes_per_image, memoryview(item.data)
        if item.type not in ("base64", "url") or data[:1] != b'"':
            raise InvalidRequest(f"{PARAM}: an image of type {item.type} needs its data as text", param=PARAM)
        if item.type == "url":
            begin = perf_counter()
            file = await self._fetcher.fetch(_url(item.data), take, payer)
            self._fetched(perf_counter() - begin)
            return file
        size = data.nbytes * 3 // 4
        if size > most + 6 and b"\\" not in bytes(data):
            raise _too_large(most)
        take(size)
        return await _apart(size, lambda: decoded(item.data, most))


async def _pause(raw: Raw) -> None:
    """Let others run first if decoding takes long."""
    if memoryview(raw).nbytes > SHORT:
        await asyncio.sleep(0)


def _url(raw: Raw) -> str:
    """Raises InvalidRequest for what is no text, or is too long for a URL."""
    return schema.decode(_text, raw if memoryview(raw).nbytes < 2 * schema.ESCAPED * MAX_URL else b'""', PARAM)


def item(raw: Raw) -> ImageItem:
    """One decoded item. Raises InvalidRequest."""
    return schema.decode(_items, raw, PARAM + ".images")


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order. The first failure cancels the others."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _apart(size: int, work: Callable[[], T]) -> T:
    """Run `work` in a thread if `size` is above SHORT, so that it does not block the loop."""
    return work() if size <= SHORT else await asyncio.to_thread(work)


def decoded(raw: Raw, most: int) -> bytes:
    """The bytes of a JSON string of base64. Raises InvalidRequest if it is not base64, PayloadTooLarge above `most`."""
    data, found, rest, padded = bytes(raw), bytearray(), "", False
    at, last = 1, len(data) - 1
    try:
        while at < last:  # in pieces, because the event loop waits for each
            end = min(at + PIECE, last)
            if end < last and (cut := data.rfind(b"\\", end - schema.ESCAPED, end)) >= 0:
                end = cut  # no escape is cut in two
            text = _text.decode(b'"' + data[at:end] + b'"')
            if at == 1 and text.lstrip()[:5].lower() == "data:":
                raise InvalidRequest(
                    "an image's base64 must be sent without the prefix `data:...;base64,`", param=PARAM
                )
            at, rest = end, rest + text.translate(WHITE)
            if padded and rest:
                raise ValueError
            whole = len(rest) if at >= last else len(rest) // 4 * 4
            found += binascii.a2b_base64(rest[:whole], strict_mode=True)
            padded, rest = padded or rest[:whole].endswith("="), rest[whole:]
            if len(found) > most:
                raise _too_large(most)
    except (ValueError, msgspec.DecodeError):  # binascii.Error is a ValueError
        raise InvalidRequest("an image's data is not base64", param=PARAM) from None
    return bytes(found)


def _too_large(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"an image is larger than {most} bytes", param=PARAM)
