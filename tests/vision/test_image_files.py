"""Image files of every kind: what is read, what is refused, and with which error."""

from __future__ import annotations

import io
import random
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageOps

from lightllm_mp.errors import InvalidRequest, PayloadTooLarge, UnsupportedMedia
from lightllm_mp.vision.decode import decode
from lightllm_mp.vision.header import ALLOWED, ImageHeader, ImageLimits, read_header
from tests.vision.image_files import bomb, encoded, gif_beyond_its_screen, noise, png_of, with_orientation

LOSSY = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}


def opened(data: bytes, limits: ImageLimits | None = None) -> Image.Image:
    picture = decode(data, read_header(data, limits))
    assert picture.mode == "RGB"
    return picture


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean over all values, 0..255."""
    assert a.size == b.size
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed_formats(name: str) -> None:
    data = encoded(noise(), name, **LOSSY.get(name, {}))
    assert read_header(data) == ImageHeader(name, 30, 40)
    assert difference(opened(data), noise()) < {"JPEG": 3, "GIF": 20}.get(name, 0.01)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("webp lossy", encoded(noise(), "WEBP")),
        ("webp alpha", encoded(noise(mode="RGBA"), "WEBP")),
        ("tiff lzw", encoded(noise(), "TIFF", compression="tiff_lzw")),
        ("several pictures in a jpeg", encoded(noise(), "MPO", save_all=True, append_images=[noise()])),
        ("progressive jpeg", encoded(noise(), "JPEG", progressive=True)),
    ],
)
def test_sizes_in_headers(kind: str, data: bytes) -> None:
    header = read_header(data)
    assert (header.width, header.height) == (30, 40) == opened(data).size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA"])
def test_modes_become_rgb_as_pillow_does_it(mode: str) -> None:
    name = "TIFF" if mode == "PA" else "PNG"
    data = encoded(noise(mode="RGBA" if mode == "PA" else mode), name)
    assert difference(opened(data), Image.open(io.BytesIO(data)).convert("RGB")) == 0


def test_alpha_is_dropped_not_blended() -> None:
    clear = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    assert opened(encoded(clear, "PNG")).getpixel((1, 1)) == (200, 100, 50)


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency() -> None:
    picture = noise(mode="P")
    data = encoded(picture, "PNG", transparency=bytes(range(256)))
    assert difference(opened(data), picture.convert("RGB")) == 0


def test_cmyk() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG")
    red, green, blue = opened(data).getpixel((3, 3))
    assert red < 10
    assert green > 245
    assert blue > 245


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_16_bits_keep_the_upper_8(name: str) -> None:
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    grey = np.asarray(opened(encoded(Image.fromarray(values), name)))
    assert (grey == (values >> 8)[:, :, None]).all()


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(name: str) -> None:
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "blue", "green")]
    data = encoded(frames[0], name, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert difference(opened(data), frames[0]) < 2


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(name: str, orientation: int) -> None:
    data = with_orientation(noise(), name, orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    header = read_header(data)
    assert (header.width, header.height) == upright.size == ((40, 30) if orientation > 4 else (30, 40))
    assert difference(opened(data), upright) == 0


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_nonsense_in_exif_is_ignored(orientation: int) -> None:
    assert opened(with_orientation(noise(), "JPEG", orientation)).size == (30, 40)


def test_a_bomb_is_refused_by_its_header() -> None:
    data = bomb()
    assert len(data) < 5000
    tracemalloc.start()
    with pytest.raises(PayloadTooLarge, match="30000 x 30000"):
        read_header(data)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_a_frame_larger_than_its_screen_counts() -> None:
    with pytest.raises(PayloadTooLarge, match="60000 x 60000"):
        read_header(gif_beyond_its_screen())


def test_limits() -> None:
    data = encoded(noise(), "PNG")
    assert opened(data, ImageLimits(max_bytes=len(data), max_pixels=1200, max_edge=40)).size == (30, 40)
    for limits in (ImageLimits(max_bytes=len(data) - 1), ImageLimits(max_pixels=1199), ImageLimits(max_edge=39)):
        with pytest.raises(PayloadTooLarge) as caught:
            read_header(data, limits)
        assert caught.value.status == 413


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (10, 200, 30))
    assert difference(opened(encoded(picture, "PNG")), picture) == 0


@pytest.mark.parametrize(
    "data", [b"<html></html>", b"<svg/>", b"%PDF-1.4", b"\x00" * 64, b"RIFF\x00\x00\x00\x00AVI LIST", b"\x89PN"]
)
def test_other_files_are_no_images(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match="none of the formats") as caught:
        read_header(data)
    assert caught.value.status == 415


@pytest.mark.parametrize("data", [b"", png_of(0, 5), png_of(5, 0), b"\xff\xd8\xff\xd9", b"GIF89a", b"BM", b"II*\0"])
def test_damaged_headers(data: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_header(data)
    assert caught.value.status == 400


@pytest.mark.parametrize("name", ALLOWED)
def test_truncated_anywhere(name: str) -> None:
    """A file cut off at any place is refused, in the header or in the pixels, with a text of ours."""
    data = encoded(noise(), name)
    for length in range(16, len(data) - 2, max(1, len(data) // 60)):
        with pytest.raises(InvalidRequest, match=f"{name} image is damaged or cut off"):
            opened(data[:length])


def test_pixels_that_are_not_there() -> None:
    with pytest.raises(InvalidRequest, match="damaged or cut off"):
        opened(png_of(500, 500, b"\0" * 100))


def test_a_header_that_says_another_size_than_the_decoder_finds() -> None:
    data = encoded(noise(), "PNG")
    with pytest.raises(InvalidRequest, match="two different sizes"):
        decode(data, ImageHeader("PNG", 31, 40))


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_pixels_that_are_no_colours(mode: str) -> None:
    picture = Image.fromarray(np.ones((4, 4), np.float32)) if mode == "F" else noise(mode="LAB")
    with pytest.raises(UnsupportedMedia, match=f"pixels of kind {mode}"):
        opened(encoded(picture, "TIFF"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ALLOWED)
def test_random_damage_gives_pictures_or_typed_errors(name: str) -> None:
    dice, limits = random.Random(name), ImageLimits(max_pixels=1_000_000)
    whole, refused = encoded(noise(), name), 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(dice.choice((1, 4, 12))):
            data[dice.randrange(min(len(data), dice.choice((64, len(data)))))] = dice.randrange(256)
        try:
            opened(bytes(data), limits)
        except InvalidRequest:
            refused += 1
    assert refused > 20
