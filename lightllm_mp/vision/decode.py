"""Decodes an image file with Pillow into an RGB image.

Of an animation the first frame is taken. Alpha is dropped and the colours behind it show, as with upstream's
`convert("RGB")`. CMYK, grey and palettes become RGB; of 16 bits the upper 8 are kept (Pillow would clip to white). The
EXIF orientation is applied for every family, so the model sees what people see. transformers' loader does the same; the
original scripts of Qwen-VL and LLaVA ignore it.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from lightllm_mp.errors import InvalidRequest, UnsupportedMedia
from lightllm_mp.vision.header import ImageHeader

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes each EXIF orientation."""


def decode(data: bytes, header: ImageHeader) -> Image.Image:
    """The image, mode RGB and upright, of a file whose header was read and is within the limits.

    Raises InvalidRequest where the pixels are damaged, truncated or not as the header says, UnsupportedMedia where they
    are not colours (floating point, L*a*b*).
    """
    try:
        with Image.open(io.BytesIO(data), formats=[header.format]) as opened:
            if opened.size != (header.stored_width, header.stored_height):
                raise InvalidRequest(f"a {header.format} image says two different sizes")
            opened.load()
            image = _rgb(opened)
    except (InvalidRequest, UnsupportedMedia):
        raise
    except MemoryError:
        raise
    except Exception as error:  # readers raise almost anything for a damaged file
        raise InvalidRequest(f"a {header.format} image is damaged or cut off") from error
    turn = TURNS.get(header.orientation)
    return image if turn is None else image.transpose(turn)


def _rgb(opened: Image.Image) -> Image.Image:
    if opened.mode.startswith("I"):
        return _upper_bits(opened)
    if opened.mode in ("F", "LAB", "HSV"):
        raise UnsupportedMedia(f"an image with pixels of kind {opened.mode} is not supported")
    opened.info.pop("transparency", None)  # dropped like all alpha; Pillow would warn about it
    return opened.convert("RGB")


def _upper_bits(opened: Image.Image) -> Image.Image:
    """Grey of 16 bits, which Pillow holds in 16 or 32, to its upper 8 bits."""
    grey = np.asarray(opened).astype(np.int64).clip(0, 0xFFFF) >> 8
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
