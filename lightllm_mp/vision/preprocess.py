"""Preprocesses an RGB image into the input of a vision tower, with Pillow and numpy, without torch.

Pillow resizes 8-bit values and rounds to 8 bits, as in upstream's processors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightllm_mp.vision.sizing import PatchGrid, patch_grid, resized
from lightllm_mp.vision.spec import Preprocess, VisionSpec

LARGEST = 32_000_000
"""Most pixels of an intermediate image. Thin images would exceed them (one of 1 x 5000 pixels, resized to a shorter
edge of 336, has 564 million); they are cropped first, which rounds differently."""


@dataclass(frozen=True, slots=True)
class Preprocessed:
    """Input of the tower for one image or video."""

    pixels: NDArray[np.float32]
    """[3, size, size], or with a dynamic size [patches, 3 * temporal * patch * patch], merged patches together, frame
    after frame."""
    grid: PatchGrid


def preprocess(image: Image.Image, spec: VisionSpec) -> Preprocessed:
    """Pixels of an RGB image. Raises InvalidRequest for an image that is too long and thin (dynamic size)."""
    steps = spec.preprocess
    grid = patch_grid(spec, *image.size)
    if steps.mode == "crop":
        small = _cropped(_on_square(image, steps) if steps.pad else image, steps)
    else:
        small = image.resize(resized(spec, *image.size), _filter(steps))
    pixels = _normalised(small, steps)
    return Preprocessed(patches([pixels] * spec.temporal, grid, spec) if steps.mode == "dynamic" else pixels, grid)


def preprocess_video(frames: Iterable[Image.Image], grid: PatchGrid, spec: VisionSpec) -> Preprocessed:
    """Pixels of RGB frames, as many as `grid` wants; the last one fills up the last patches."""
    size, each = (grid.columns * spec.patch, grid.rows * spec.patch), grid.rows * grid.columns
    pixels = np.empty((grid.patches, spec.patch_values), np.float32)
    small = (_normalised(frame.resize(size, _filter(spec.preprocess)), spec.preprocess) for frame in frames)
    for number in range(grid.frames):
        some = list(islice(small, spec.temporal))
        some += some[-1:] * (spec.temporal - len(some))
        pixels[number * each : (number + 1) * each] = patches(some, grid, spec)
    return Preprocessed(pixels, grid)


def _filter(steps: Preprocess) -> Image.Resampling:
    return Image.Resampling(steps.resample)


def _on_square(image: Image.Image, steps: Preprocess) -> Image.Image:
    """Centred on a square of the mean colour (LLaVA's expand2square)."""
    side = max(image.size)
    if side * side > LARGEST:
        shrink = max(1.0, (side * side / LARGEST) ** 0.5)
        image = image.resize([max(1, int(edge / shrink)) for edge in image.size], _filter(steps))
        side = max(image.size)
    width, height = image.size
    square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in steps.mean))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _cropped(image: Image.Image, steps: Preprocess) -> Image.Image:
    """The shorter edge becomes `edge`, then the middle square (CLIPImageProcessor)."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    stretched = int(steps.edge * long / short)
    size = (steps.edge, stretched) if width <= height else (stretched, steps.edge)
    left, top = (size[0] - steps.size) // 2, (size[1] - steps.size) // 2
    if size[0] * size[1] <= LARGEST:
        return image.resize(size, _filter(steps)).crop((left, top, left + steps.size, top + steps.size))
    across, down = width / size[0], height / size[1]
    box = (left * across, top * down, (left + steps.size) * across, (top + steps.size) * down)
    return image.resize((steps.size, steps.size), _filter(steps), box=box)


def _normalised(image: Image.Image, steps: Preprocess) -> NDArray[np.float32]:
    """float32 [3, height, width], by a table of 256 values per channel."""
    values = np.asarray(image)
    return np.stack([table[values[:, :, channel]] for channel, table in enumerate(_tables(steps))])


@lru_cache(maxsize=8)
def _tables(steps: Preprocess) -> NDArray[np.float32]:
    scaled = (np.arange(256) * steps.scale).astype(np.float32)
    mean, std = np.array(steps.mean, dtype=np.float32), np.array(steps.std, dtype=np.float32)
    return (scaled - mean[:, None]) / std[:, None]


def patches(frames: Sequence[NDArray[np.float32]], grid: PatchGrid, spec: VisionSpec) -> NDArray[np.float32]:
    """float32 [rows * columns, 3 * temporal * patch * patch] of `temporal` frames [3, height, width]: block after block
    of merge x merge patches, row by row."""
    merge, patch = spec.merge, spec.patch
    shape = (grid.rows // merge, grid.columns // merge, merge, merge, 3, spec.temporal, patch, patch)
    ordered = np.empty(shape, np.float32)
    for number, pixels in enumerate(frames):
        blocks = pixels.reshape(3, grid.rows // merge, merge, patch, grid.columns // merge, merge, patch)
        ordered[:, :, :, :, :, number] = blocks.transpose(1, 4, 2, 5, 0, 3, 6)
    return ordered.reshape(-1, spec.patch_values)
