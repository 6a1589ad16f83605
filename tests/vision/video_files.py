"""Videos made by hand: frames, and MP4 files whose only content is their index."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from tests.vision.image_files import encoded

SMALL = {"size": {"shortest_edge": 1024, "longest_edge": 12000}}
"""Of a video_preprocessor_config.json for towers of tiny patches."""


def write_video_config(folder: Path) -> Path:
    (folder / "video_preprocessor_config.json").write_text(json.dumps(SMALL))
    return folder


def picture(number: int, width: int = 72, height: int = 48) -> Image.Image:
    """A frame of a pattern that moves."""
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    colours = (x * 3 + 40 * number + 0 * y, y * 5 + 0 * x + number * 17, (x + y) * 2)
    return Image.fromarray(np.stack([colour % 256 for colour in colours], -1).astype(np.uint8))


def frame_files(count: int) -> list[bytes]:
    return [encoded(picture(number), "PNG") for number in range(count)]


def box(kind: bytes, *content: bytes) -> bytes:
    return struct.pack(">I", 8 + sum(map(len, content))) + kind + b"".join(content)


def mp4_index(
    frames: int = 60, *, scale: int = 600, delta: int = 20, size: tuple[int, int] = (72, 48), turn: int = 0
) -> bytes:
    """An MP4 file without its media: a sound track, then `frames` frames of `delta` / `scale` seconds."""
    words = {0: (1 << 16, 0), 90: (0, 1 << 16), 180: (-(1 << 16), 0), 270: (0, -(1 << 16))}[turn]
    place = box(b"tkhd", bytes(40), struct.pack(">2i", *words), bytes(28))
    clock = box(b"mdhd", bytes(12), struct.pack(">2I", scale, frames * delta), bytes(4))
    kind = box(b"hdlr", bytes(8), b"vide", bytes(12))
    entry = box(b"avc1", bytes(24), struct.pack(">2H", *size), bytes(50))
    times = box(b"stts", struct.pack(">4I", 0, 1, frames, delta))
    table = box(b"minf", box(b"stbl", box(b"stsd", struct.pack(">2I", 0, 1), entry), times))
    sound = box(b"trak", box(b"mdia", box(b"hdlr", bytes(8), b"soun", bytes(12))))
    return box(b"ftyp", b"isom", bytes(4)) + box(b"moov", sound, box(b"trak", place, box(b"mdia", clock, kind, table)))
