"""From an RGB picture to the numbers that a vision tower takes: Pillow and numpy, no torch.

Resizing is Pillow's own on 8-bit values, rounded to 8 bits, which is what upstream's processors do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightllm_mp.vision.sizing import PatchGrid, patch_grid, resized
from lightllm_mp.vision.spec import Preprocess, VisionSpec

LARGEST = 32_000_000
"""Pixels of a picture between two steps. Thin pictures would exceed them (a line of 1 x 5000 with its shorter edge
resized to 336 has 564 million); those take another way to the same picture, which rounds differently."""


@dataclass(frozen=True, slots=True)
class Preprocessed:
    """Input of the tower for one picture."""

    pixels: NDArray[np.float32]
    """[3, size, size], or with a dynamic size [patches, 3 * temporal * patch * patch], merged patches together."""
    grid: PatchGrid


def preprocess(picture: Image.Image, spec: VisionSpec) -> Preprocessed:
    """Pixels of an RGB picture. Raises InvalidRequest for a picture that is far too long and thin (dynamic size)."""
    steps = spec.preprocess
    grid = patch_grid(spec, *picture.size)
    if steps.mode == "crop":
        small = _cropped(_on_square(picture, steps) if steps.pad else picture, steps)
    else:
        small = picture.resize(resized(spec, *picture.size), _filter(steps))
    pixels = _normalised(small, steps)
    return Preprocessed(_patches(pixels, grid, spec) if steps.mode == "dynamic" else pixels, grid)


def _filter(steps: Preprocess) -> Image.Resampling:
    return Image.Resampling(steps.resample)


def _on_square(picture: Image.Image, steps: Preprocess) -> Image.Image:
    """Centred on a square of the mean colour (LLaVA's expand2square)."""
    side = max(picture.size)
    if side * side > LARGEST:
        shrink = max(1.0, (side * side / LARGEST) ** 0.5)
        picture = picture.resize([max(1, int(edge / shrink)) for edge in picture.size], _filter(steps))
        side = max(picture.size)
    width, height = picture.size
    square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in steps.mean))
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


def _cropped(picture: Image.Image, steps: Preprocess) -> Image.Image:
    """The shorter edge becomes `edge`, then the middle square (CLIPImageProcessor)."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    stretched = int(steps.edge * long / short)
    size = (steps.edge, stretched) if width <= height else (stretched, steps.edge)
    left, top = (size[0] - steps.size) // 2, (size[1] - steps.size) // 2
    if size[0] * size[1] <= LARGEST:
        return picture.resize(size, _filter(steps)).crop((left, top, left + steps.size, top + steps.size))
    across, down = width / size[0], height / size[1]
    box = (left * across, top * down, (left + steps.size) * across, (top + steps.size) * down)
    return picture.resize((steps.size, steps.size), _filter(steps), box=box)


def _normalised(picture: Image.Image, steps: Preprocess) -> NDArray[np.float32]:
    """float32 [3, height, width], by a table of what each of the 256 values becomes."""
    values = np.asarray(picture)
    return np.stack([table[values[:, :, channel]] for channel, table in enumerate(_tables(steps))])


@lru_cache(maxsize=8)
def _tables(steps: Preprocess) -> NDArray[np.float32]:
    scaled = (np.arange(256) * steps.scale).astype(np.float32)
    mean, std = np.array(steps.mean, dtype=np.float32), np.array(steps.std, dtype=np.float32)
    return (scaled - mean[:, None]) / std[:, None]


def _patches(pixels: NDArray[np.float32], grid: PatchGrid, spec: VisionSpec) -> NDArray[np.float32]:
    """float32 [patches, 3 * temporal * patch * patch]: block after block of merge x merge patches, row by row."""
    merge, patch = spec.merge, spec.patch
    blocks = pixels.reshape(3, grid.rows // merge, merge, patch, grid.columns // merge, merge, patch)
    patches = blocks.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    frames = np.broadcast_to(patches, (*patches.shape[:5], spec.temporal, patch, patch))
    return frames.reshape(grid.patches, spec.patch_values)
