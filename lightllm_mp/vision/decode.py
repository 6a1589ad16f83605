"""Decodes an image file with Pillow into an RGB picture.

What becomes of unusual files: of an animation the first frame; alpha is dropped, the colours behind it show (as
upstream's `convert("RGB")` does); CMYK, grey and palettes become RGB; of 16 bits the upper 8 are kept (Pillow would cut
off at 255 and give white). The EXIF orientation is obeyed for every family, so that the model sees what people see: so
does transformers' own loader, while the original scripts of Qwen-VL and LLaVA, which call Pillow plainly, ignore it.
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
"""What undoes each EXIF orientation."""


def decode(data: bytes, header: ImageHeader) -> Image.Image:
    """The picture of a file whose header was read and found within the limits, mode RGB, as it is shown.

    Raises InvalidRequest where the pixels are damaged, cut off or not as the header says, UnsupportedMedia where they
    are no colours (floating point, L*a*b*).
    """
    try:
        with Image.open(io.BytesIO(data), formats=[header.format]) as opened:
            if opened.size != (header.stored_width, header.stored_height):
                raise InvalidRequest(f"a {header.format} image says two different sizes")
            opened.load()
            picture = _rgb(opened)
    except (InvalidRequest, UnsupportedMedia):
        raise
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes the readers raise almost anything
        raise InvalidRequest(f"a {header.format} image is damaged or cut off") from error
    turn = TURNS.get(header.orientation)
    return picture if turn is None else picture.transpose(turn)


def _rgb(opened: Image.Image) -> Image.Image:
    if opened.mode.startswith("I"):
        return _upper_bits(opened)
    if opened.mode in ("F", "LAB", "HSV"):
        raise UnsupportedMedia(f"an image with pixels of kind {opened.mode} is not supported")
    opened.info.pop("transparency", None)  # it is dropped like all alpha, and Pillow would warn of that
    return opened.convert("RGB")


def _upper_bits(opened: Image.Image) -> Image.Image:
    """Grey in 16 bits, which Pillow holds in 16 or in 32."""
    grey = np.asarray(opened).astype(np.int64).clip(0, 0xFFFF) >> 8
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
