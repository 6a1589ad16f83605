"""Reads the headers of video files and packs lists of frames into one file. Imports neither torch nor PyAV.

A video is a file, or a list of image files that the front packs into one. As in header.py, nothing here decodes: the
module only reads integers at offsets, and decoding checks the claims again.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from math import isfinite
from typing import NamedTuple

from lightllm_mp.errors import InvalidRequest, PayloadTooLarge, UnsupportedMedia
from lightllm_mp.vision import containers
from lightllm_mp.vision.header import ImageLimits, read_header

FRAMES_FPS = 2.0
"""Frames per second of a list of frames without a rate: the rate at which Qwen's own tools sample videos."""
MOST_FRAMES, MOST_PIXELS = 1 << 16, 1 << 34
"""Most frames of a video, and most pixels of all of them: ten minutes of 1280 x 720 at 30 frames per second. All are
decoded, which may take the decoder's deadline."""
PACKED = b"LLMPFRAM"
"""Begins a packed list of frames. Then: frames per second (float64), the number of frames and the length of each
(uint32), and the image files."""
NEEDS_PYAV = (
    "video files need PyAV, which this server lacks (pip install 'lightllm-mp[video]'); a list of frames needs none"
)


class VideoHeader(NamedTuple):
    """The claims of a file about its video. Width and height are as displayed."""

    width: int
    height: int
    frames: int
    fps: float
    turn: int = 0
    """Degrees by which decoded frames must be turned clockwise."""
    packed: bool = False
    """A list of frames, all of which the model sees."""


@cache
def decodes_files() -> bool:
    """Whether PyAV is installed."""
    return find_spec("av") is not None


def is_video(data: bytes) -> bool:
    """Whether `read_video` knows the format."""
    return data.startswith(PACKED) or data[4:8] == b"ftyp"


def pack_frames(files: Sequence[bytes], fps: float | None) -> bytes:
    """One file of a list of image files."""
    lengths = struct.pack(f"<{len(files) + 1}I", len(files), *map(len, files))
    return b"".join((PACKED, struct.pack("<d", fps or FRAMES_FPS), lengths, *files))


def unpacked_frames(data: bytes) -> tuple[float, list[bytes]]:
    """Frames per second and files of `pack_frames`. Raises InvalidRequest if the lengths do not add up."""
    at = len(PACKED) + 12
    try:
        fps, count = struct.unpack_from("<dI", data, len(PACKED))
        lengths = struct.unpack_from(f"<{count}I", data, at) if count <= MOST_FRAMES else ()
    except struct.error:
        raise InvalidRequest("a list of frames is cut off") from None
    at += 4 * len(lengths)
    files = []
    for length in lengths:
        files.append(data[at : at + length])
        at += length
    if not files or at != len(data):
        raise InvalidRequest("a list of frames is cut off or empty")
    return fps, files


def read_video(data: bytes, limits: ImageLimits | None = None) -> VideoHeader:
    """Size, number of frames and rate of a video.

    Raises PayloadTooLarge beyond a limit, UnsupportedMedia for another kind of file, InvalidRequest for a damaged one.
    """
    limits = limits or ImageLimits()
    if len(data) > limits.max_bytes:
        raise PayloadTooLarge(f"a video of {len(data)} bytes is over the limit of {limits.max_bytes}")
    if not is_video(data):
        raise UnsupportedMedia("a video is in none of the formats MP4, MOV")
    header = _read_packed(data, limits) if data.startswith(PACKED) else _read_mp4(data)
    if header.width * header.height > limits.max_pixels or max(header.width, header.height) > limits.max_edge:
        raise PayloadTooLarge(f"a video of {header.width} x {header.height} pixels is over the limit for an image")
    if header.frames > MOST_FRAMES:
        raise PayloadTooLarge(f"a video has {header.frames} frames, at most {MOST_FRAMES} are decoded")
    if header.frames * header.width * header.height > MOST_PIXELS:
        raise PayloadTooLarge(f"the frames of a video have more than {MOST_PIXELS} pixels: send fewer or smaller ones")
    if not (isfinite(header.fps) and header.fps > 0):
        raise InvalidRequest("a video has no rate of frames")
    return header


def _read_packed(data: bytes, limits: ImageLimits) -> VideoHeader:
    fps, files = unpacked_frames(data)
    sizes = {(header.width, header.height) for header in (read_header(file, limits) for file in files)}
    if len(sizes) > 1:
        raise InvalidRequest("the frames of a video have different sizes")
    return VideoHeader(*sizes.pop(), len(files), fps, packed=True)


def _read_mp4(data: bytes) -> VideoHeader:
    try:
        stored = containers.mp4(data)
    except (containers.Damaged, IndexError, ZeroDivisionError) as error:
        raise InvalidRequest("a video is damaged, cut off or without an index of its frames") from error
    if min(stored.width, stored.height, stored.frames) < 1:
        raise InvalidRequest("a video has no frames or no size")
    width, height = (stored.width, stored.height) if stored.turn % 180 == 0 else (stored.height, stored.width)
    return VideoHeader(width, height, stored.frames, stored.fps, stored.turn)
