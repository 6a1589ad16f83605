"""Image files made by hand or by Pillow, good and hostile."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from lightllm_mp.vision.header import ALLOWED


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int = 30, height: int = 40, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def png_of(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG that claims a size and holds whatever pixel data; all checksums are right."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")
    )


def bomb() -> bytes:
    """30000 x 30000 pixels in a few kilobytes."""
    return png_of(30_000, 30_000, bytes(3_000_000))


def gif_beyond_its_screen() -> bytes:
    """A screen of 10 x 10 whose first frame is 60000 x 60000 and is to be cleared after it was shown."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0x80, 0, 0) + bytes(6)
    control = b"\x21\xf9\x04\x08" + bytes(4)
    return screen + control + b"\x2c" + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x02\x02\x4c\x01\x00\x3b"


def with_orientation(picture: Image.Image, format: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture, format, exif=exif)


def every_kind() -> Iterator[tuple[str, bytes]]:
    """(what it is, the file) for every way to decode: formats, modes, compressions, depths, orientations, frames."""
    for name in ALLOWED:
        yield name, encoded(noise(), name)
        yield f"large {name}", encoded(noise(1500, 1100), name)
    for mode in ("1", "L", "LA", "P", "RGBA"):
        yield f"PNG {mode}", encoded(noise(mode=mode), "PNG")
        yield f"TIFF {mode}", encoded(noise(mode=mode), "TIFF")
    for name in ("GIF", "WEBP", "PNG", "TIFF"):
        yield f"animated {name}", encoded(noise(), name, save_all=True, append_images=[noise(mode="L"), noise()])
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield compression, encoded(noise(), "TIFF", compression=compression)
    for orientation in range(1, 9):
        yield f"orientation {orientation}", with_orientation(noise(), "JPEG", orientation)
    deep = Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32))
    yield "PNG of 16 bits", encoded(deep, "PNG")
    yield "TIFF of 16 bits", encoded(deep, "TIFF")
    yield "CMYK", encoded(noise(mode="CMYK"), "JPEG")
    yield "progressive", encoded(noise(), "JPEG", progressive=True)
    yield "lossless", encoded(noise(), "WEBP", lossless=True)
    yield "WEBP with alpha", encoded(noise(mode="RGBA"), "WEBP")
    yield "MPO", encoded(noise(), "MPO", save_all=True, append_images=[noise()])
    yield "palette with transparency", encoded(noise(mode="P"), "PNG", transparency=bytes(range(256)))
    yield "interlaced GIF", encoded(noise(), "GIF", interlace=1)
