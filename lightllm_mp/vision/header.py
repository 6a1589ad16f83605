"""Format and size of an image from the first bytes of its file, before anything is decoded.

Nothing here decompresses, allocates by a size that a file claims, or loads an image library, so any process can check a
file. Decoding checks the header's claims again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightllm_mp.errors import InvalidRequest, PayloadTooLarge, UnsupportedMedia
from lightllm_mp.vision import containers

Format = str
"""One of `ALLOWED`, as Pillow spells it."""

READERS: dict[Format, tuple[Callable[[bytes], bool], Callable[[bytes], containers.StoredSize]]] = {
    "PNG": (lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"), containers.png),
    "JPEG": (lambda data: data.startswith(b"\xff\xd8\xff"), containers.jpeg),
    "WEBP": (lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP", containers.webp),
    "GIF": (lambda data: data.startswith((b"GIF87a", b"GIF89a")), containers.gif),
    "BMP": (lambda data: data.startswith(b"BM"), containers.bmp),
    "TIFF": (lambda data: data.startswith((b"II*\0", b"MM\0*")), containers.tiff),
}
"""Format -> (test for it, reader of its size)."""
ALLOWED = tuple(READERS)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of one image."""

    max_bytes: int = 32 << 20
    """Size of the file."""
    max_pixels: int = 64_000_000
    """Decoded pixels of three bytes each. Pillow itself decodes at most 178 million."""
    max_edge: int = 65_500
    """Pixels along one edge."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The claims of a file about its image (of an animation: the first frame)."""

    format: Format
    stored_width: int
    stored_height: int
    orientation: int = 1
    """EXIF tag 0x0112, 1..8: how the stored rows are rotated. Always 1 for TIFF, whose reader rotates it."""

    @property
    def width(self) -> int:
        """Displayed width, after rotation: the one that counts for slots and positions."""
        return self.stored_height if self.orientation >= 5 else self.stored_width

    @property
    def height(self) -> int:
        """Displayed height."""
        return self.stored_width if self.orientation >= 5 else self.stored_height


def read_header(data: bytes, limits: ImageLimits | None = None) -> ImageHeader:
    """Format and size of an image file.

    Raises PayloadTooLarge beyond a limit, UnsupportedMedia for another kind of file, InvalidRequest for a damaged one.
    """
    limits = limits or ImageLimits()
    if len(data) > limits.max_bytes:
        raise PayloadTooLarge(f"an image of {len(data)} bytes is over the limit of {limits.max_bytes}")
    if not data:
        raise InvalidRequest("an image is empty")
    for name, (matches, size_of) in READERS.items():
        if matches(data):
            return _checked(name, size_of, data, limits)
    raise UnsupportedMedia(f"an image is in none of the formats {', '.join(ALLOWED)}")


def _checked(
    name: Format, size_of: Callable[[bytes], containers.StoredSize], data: bytes, limits: ImageLimits
) -> ImageHeader:
    try:
        width, height, orientation = size_of(data)
    except (containers.Damaged, IndexError) as error:
        raise InvalidRequest(f"a {name} image is damaged or cut off before its size is said") from error
    if width < 1 or height < 1:
        raise InvalidRequest(f"a {name} image has no size")
    if width * height > limits.max_pixels or max(width, height) > limits.max_edge:
        raise PayloadTooLarge(
            f"an image of {width} x {height} pixels is over the limit of {limits.max_pixels} pixels, "
            f"{limits.max_edge} along an edge"
        )
    return ImageHeader(name, width, height, orientation if 1 <= orientation <= 8 else 1)
