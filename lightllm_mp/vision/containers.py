"""Reads the size of an image from each format, and that of a video with its frames: only integers at offsets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

ORIENTATION, WIDTH, HEIGHT = 0x0112, 0x0100, 0x0101
"""Tags of a TIFF directory; EXIF data is a TIFF file too."""
MAX_BLOCKS = 10_000
"""Chunks, segments or fill bytes that are read before a file counts as damaged."""
MAX_SUB_BLOCKS = 100_000
"""The same for the blocks of a GIF, which have at most 255 bytes."""
MAX_TAGS = 4096
"""Most entries of a TIFF directory; real ones have a few dozen."""


class Damaged(Exception):
    """The file ends early or contradicts itself."""


class StoredVideo(NamedTuple):
    """The first video track. `turn`: degrees by which its frames are shown turned clockwise."""

    width: int
    height: int
    frames: int
    fps: float
    turn: int


class StoredSize(NamedTuple):
    """Stored width and height, and the EXIF orientation (1 where there is none)."""

    width: int
    height: int
    orientation: int = 1


def _uint(data: bytes, at: int, length: int, order: str = "big") -> int:
    part = data[at : at + length]
    if len(part) != length:
        raise Damaged
    return int.from_bytes(part, "little" if order == "little" else "big")


def png(data: bytes) -> StoredSize:
    """PNG (ISO 15948): the header chunk is the first one; an eXIf chunk counts where it precedes the pixels."""
    if data[12:16] != b"IHDR":
        raise Damaged
    width, height = _uint(data, 16, 4), _uint(data, 20, 4)
    at = 8
    for _ in range(MAX_BLOCKS):
        kind, length = data[at + 4 : at + 8], int.from_bytes(data[at : at + 4], "big")
        if kind == b"eXIf":
            return StoredSize(width, height, _orientation(data[at + 8 : at + 8 + length]))
        if kind in (b"", b"IDAT", b"IEND"):
            break
        at += 12 + length
    return StoredSize(width, height)


def jpeg(data: bytes) -> StoredSize:
    """JPEG (ITU T.81): the size is in the frame header, EXIF in an APP1 segment before it."""
    orientation: int | None = None
    for kind, at, length in _segments(data):
        if kind == 0xE1 and orientation is None and data[at : at + 6] == b"Exif\0\0":
            orientation = _orientation(data[at + 6 : at + length])
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return StoredSize(_uint(data, at + 3, 2), _uint(data, at + 1, 2), orientation or 1)
    raise Damaged


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start of the content, its length) of each segment up to the first scan."""
    at = 2
    for _ in range(MAX_BLOCKS):
        if _uint(data, at, 1) != 0xFF:
            raise Damaged
        at += 1
        kind = _uint(data, at, 1)
        if kind == 0xFF:  # fill bytes may precede a marker
            continue
        at += 1
        if kind == 0xDA:
            return
        if kind == 0x01 or 0xD0 <= kind <= 0xD8:
            continue
        length = _uint(data, at, 2)
        if length < 2:
            raise Damaged
        yield kind, at + 2, length - 2
        at += length


def webp(data: bytes) -> StoredSize:
    """WebP (RFC 9649): lossy, lossless or extended; EXIF may follow the pixels."""
    kind = data[12:16]
    if kind == b"VP8 ":
        if data[23:26] != b"\x9d\x01\x2a":
            raise Damaged
        return StoredSize(_uint(data, 26, 2, "little") & 0x3FFF, _uint(data, 28, 2, "little") & 0x3FFF)
    if kind == b"VP8L":
        if data[20:21] != b"\x2f":
            raise Damaged
        bits = _uint(data, 21, 4, "little")
        return StoredSize((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind != b"VP8X":
        raise Damaged
    width, height = _uint(data, 24, 3, "little") + 1, _uint(data, 27, 3, "little") + 1
    return StoredSize(width, height, _webp_orientation(data))


def _webp_orientation(data: bytes) -> int:
    at = 12
    for _ in range(MAX_BLOCKS):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"EXIF":
            return _orientation(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        if len(kind) < 4:
            break
        at += 8 + length + length % 2
    return 1


def gif(data: bytes) -> StoredSize:
    """GIF: the size of the screen, or more where the first frame exceeds it."""
    width, height = _uint(data, 6, 2, "little"), _uint(data, 8, 2, "little")
    at = 13 + _colour_table(data[10])
    inside = False  # an extension: sub-blocks until an empty one
    for _ in range(MAX_SUB_BLOCKS):
        first = _uint(data, at, 1)
        if inside:
            at, inside = at + 1 + first, first > 0
        elif first == 0x21:
            at, inside = at + 2, True
        elif first == 0x2C:
            left, top, across, down = (_uint(data, at + 1 + 2 * i, 2, "little") for i in range(4))
            return StoredSize(max(width, left + across), max(height, top + down))
        else:
            raise Damaged
    raise Damaged


def _colour_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def bmp(data: bytes) -> StoredSize:
    """BMP: the header of OS/2 or one of Windows'; a negative height means that the top row comes first."""
    if _uint(data, 14, 4, "little") == 12:
        return StoredSize(_uint(data, 18, 2, "little"), _uint(data, 20, 2, "little"))
    height = _uint(data, 22, 4, "little")
    return StoredSize(_uint(data, 18, 4, "little"), (1 << 32) - height if height >> 31 else height)


def tiff(data: bytes) -> StoredSize:
    """TIFF: tags of the first directory. Pillow rotates this format itself, so the size is the displayed one."""
    tags = _directory(data)
    if WIDTH not in tags or HEIGHT not in tags:
        raise Damaged
    if 5 <= tags.get(ORIENTATION, 1) <= 8:
        return StoredSize(tags[HEIGHT], tags[WIDTH])
    return StoredSize(tags[WIDTH], tags[HEIGHT])


def _orientation(exif: bytes) -> int:
    """1 where the data is damaged: an image is not refused for its metadata."""
    try:
        return _directory(exif).get(ORIENTATION, 1)
    except Damaged:
        return 1


def _directory(data: bytes) -> dict[int, int]:
    """Tags of the first directory of a TIFF file that hold one integer."""
    order = {b"II": "little", b"MM": "big"}.get(data[:2], "")
    if not order or _uint(data, 2, 2, order) != 42:
        raise Damaged
    at = _uint(data, 4, 4, order)
    tags: dict[int, int] = {}
    entries = _uint(data, at, 2, order)
    if entries > MAX_TAGS:
        raise Damaged
    for entry in range(at + 2, at + 2 + 12 * entries, 12):
        tag, kind, count = (
            _uint(data, entry, 2, order),
            _uint(data, entry + 2, 2, order),
            _uint(data, entry + 4, 4, order),
        )
        if count == 1 and kind in (3, 4):
            tags.setdefault(tag, _uint(data, entry + 8, 2 if kind == 3 else 4, order))
    return tags


def mp4(data: bytes) -> StoredVideo:
    """MP4 and MOV (ISO 14496-12): the first track of kind `vide`, its frames from the table of their times."""
    for kind, start, end in _boxes(data, *_box(data, b"moov", 0, len(data))):
        if kind != b"trak":
            continue
        media = _box(data, b"mdia", start, end)
        if data[(handler := _box(data, b"hdlr", *media)[0]) + 8 : handler + 12] != b"vide":
            continue
        table = _box(data, b"stbl", *_box(data, b"minf", *media))
        clock = _box(data, b"mdhd", *media)[0]
        scale = _uint(data, clock + (20 if data[clock] else 12), 4)
        entry = _box(data, b"stsd", *table)[0] + 8
        frames, length = _times(data, _box(data, b"stts", *table)[0])
        width, height = _uint(data, entry + 32, 2), _uint(data, entry + 34, 2)
        return StoredVideo(
            width, height, frames, frames * scale / length, _turn(data, _box(data, b"tkhd", start, end)[0])
        )
    raise Damaged


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end of the content) of each box."""
    for _ in range(MAX_BLOCKS):
        if at + 8 > end:
            return
        size, kind, head = _uint(data, at, 4), data[at + 4 : at + 8], 8
        if size == 1:
            size, head = _uint(data, at + 8, 8), 16
        size = size or end - at
        if size < head or at + size > end:
            raise Damaged
        yield kind, at + head, at + size
        at += size


def _box(data: bytes, wanted: bytes, at: int, end: int) -> tuple[int, int]:
    """Start and end of the content of the first box of this kind."""
    for kind, start, stop in _boxes(data, at, end):
        if kind == wanted:
            return start, stop
    raise Damaged


def _times(data: bytes, at: int) -> tuple[int, int]:
    """Frames of the track, and their time in units of its clock."""
    entries = _uint(data, at + 4, 4)
    if entries > MAX_SUB_BLOCKS:
        raise Damaged
    frames = length = 0
    for entry in range(at + 8, at + 8 + 8 * entries, 8):
        count = _uint(data, entry, 4)
        frames, length = frames + count, length + count * _uint(data, entry + 4, 4)
    return frames, length


def _turn(data: bytes, at: int) -> int:
    """From the first two numbers of the matrix that places the track; 0 for one that does more than turn."""
    matrix = at + (52 if data[at] else 40)
    a, b = (_uint(data, matrix + 4 * i, 4) for i in range(2))
    return {(0, 1 << 16): 90, ((1 << 32) - (1 << 16), 0): 180, (0, (1 << 32) - (1 << 16)): 270}.get((a, b), 0)
