"""Random images for requests. The same name gives the same file on every machine."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from aiohttp import web
from PIL import Image

from lightllm_mp.errors import ConfigError

COARSE = 16
"""Pixels from one random colour to the next. Colours between them are interpolated, so files are as large as photos."""
LONGEST = 16384
"""Maximum pixels of an edge."""
HOST = "127.0.0.1"

Entry = Callable[[str], dict[str, str]]
"""Maps an image's name to its entry in `multimodal_params.images`."""


class PictureSize(NamedTuple):
    """Pixels."""

    width: int
    height: int

    @classmethod
    def read(cls, text: str) -> PictureSize:
        """From "N" or "WxH". ConfigError for other text."""
        width, cross, height = text.partition("x")
        edges = (width, height if cross else width)
        if not all(edge.isdecimal() and 1 <= int(edge) <= LONGEST for edge in edges):
            raise ConfigError(f"--image-size {text!r}: expected N or WIDTHxHEIGHT, of 1 to {LONGEST} pixels")
        return cls(*map(int, edges))


def jpeg(name: str, size: PictureSize) -> bytes:
    """A JPEG file with random colours; `name` is the seed."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    points = (size.height // COARSE + 2, size.width // COARSE + 2, 3)
    colours = Image.fromarray(random.integers(0, 256, points, dtype=np.uint8))
    buffer = io.BytesIO()
    colours.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@asynccontextmanager
async def entries(size: PictureSize, kind: Literal["base64", "url"]) -> AsyncIterator[Entry]:
    """Yields the function that makes the entries of images of `size`. With "url" this client serves the images on a
    free loopback port until the block ends; the server needs `--allow-media-host 127.0.0.1` to fetch them."""
    if kind == "base64":

        @cache  # encodes each image once
        def encoded(name: str) -> str:
            return base64.b64encode(jpeg(name, size)).decode()

        yield lambda name: {"type": "base64", "data": encoded(name)}
        return

    made = cache(lambda name: jpeg(name, size))

    async def picture(request: web.Request) -> web.Response:
        return web.Response(body=made(request.match_info["name"]), content_type="image/jpeg")

    def entry(name: str) -> dict[str, str]:
        made(name)  # before the run, so that the time of a fetch does not include it
        return {"type": "url", "data": f"http://{HOST}:{port}/{name}"}

    app = web.Application()
    app.add_routes([web.get("/{name}", picture)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0).start()
        port = runner.addresses[0][1]
        yield entry
    finally:
        await runner.cleanup()
