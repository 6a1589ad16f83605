"""Counts the KV slots of an image, and computes the positions of a prompt with images. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.vision.spec import VisionSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_RATIO = 200
"""Largest ratio of an image's edges with a dynamic size (upstream's limit)."""


class PatchGrid(NamedTuple):
    """Patches of an image: frames, rows, columns."""

    frames: int
    rows: int
    columns: int

    @property
    def patches(self) -> int:
        return self.frames * self.rows * self.columns


class PlacedImage(NamedTuple):
    """An image in a prompt: its slots are the positions [start, start + tokens)."""

    start: int
    grid: PatchGrid


def resized(spec: VisionSpec, width: int, height: int) -> tuple[int, int]:
    """(width, height) in pixels of an image after preprocessing.

    Raises InvalidRequest for an image that is too long and thin.
    """
    if spec.preprocess.mode != "dynamic":
        return spec.preprocess.size, spec.preprocess.size
    block = spec.patch * spec.merge
    if spec.preprocess.fit == "edge":
        return edge_resize(width, height, block, spec.preprocess.edge)
    if spec.preprocess.fit == "budget":
        return budget_resize(width, height, block, spec.preprocess.max_pixels)
    return smart_resize(width, height, block, spec.preprocess.min_pixels, spec.preprocess.max_pixels)


def edge_resize(width: int, height: int, factor: int, longest: int) -> tuple[int, int]:
    """(width, height), multiples of `factor`: shrunk until no edge is longer than `longest`, then rounded up."""
    ratio = max(1.0, width / longest, height / longest)
    across, down = (max(1, math.floor(edge / ratio)) for edge in (width, height))
    return -(-across // factor) * factor, -(-down // factor) * factor


def budget_resize(width: int, height: int, factor: int, pixels: int) -> tuple[int, int]:
    """(width, height), multiples of `factor`: stretched to an area of `pixels`, then rounded down. A thin image is one
    block thick (Gemma 4)."""
    stretch = math.sqrt(pixels / (width * height))
    across, down = (math.floor(stretch * edge / factor) for edge in (width, height))
    most = pixels // (factor * factor)
    if not down:
        across, down = max(1, min(width // height, most)), 1
    elif not across:
        across, down = 1, max(1, min(height // width, most))
    return across * factor, down * factor


def smart_resize(
    width: int, height: int, factor: int, min_pixels: int, max_pixels: int, *, frames: int = 0, temporal: int = 1
) -> tuple[int, int]:
    """(width, height), multiples of `factor` near the old shape, with an area within the limits: the function of that
    name in Qwen2-VL's image processor, or for a video of `frames` frames, `temporal` of them in a patch, in Qwen3-VL's
    video processor, where the limits are for all frames. Halves are rounded to even, as in Python."""
    if frames and min(width, height) < factor:
        scale = max(factor / width, factor / height)
        width, height = int(width * scale), int(height * scale)
    if max(width, height) > MAX_RATIO * min(width, height):
        raise InvalidRequest(
            f"an image of {width} x {height} pixels has one edge longer than {MAX_RATIO} times the other"
        )
    across, down = round(width / factor) * factor, round(height / factor) * factor
    rounded, frames = round(frames / temporal) * temporal or 1, frames or 1
    if rounded * across * down > max_pixels:
        shrink = math.sqrt(frames * width * height / max_pixels)
        across = max(factor, math.floor(width / shrink / factor) * factor)
        down = max(factor, math.floor(height / shrink / factor) * factor)
    elif rounded * across * down < min_pixels:
        grow = math.sqrt(min_pixels / (frames * width * height))
        across, down = math.ceil(width * grow / factor) * factor, math.ceil(height * grow / factor) * factor
    return across, down


def patch_grid(spec: VisionSpec, width: int, height: int) -> PatchGrid:
    """The patches of an image of width x height pixels as displayed (see header.py)."""
    across, down = resized(spec, width, height)
    return PatchGrid(1, down // spec.patch, across // spec.patch)


def pixel_shape(spec: VisionSpec, grid: PatchGrid) -> tuple[int, ...]:
    """Shape of the tower's input for an image of this grid (see Preprocessed)."""
    if spec.preprocess.mode == "dynamic":
        return grid.patches, spec.patch_values
    return 3, spec.preprocess.size, spec.preprocess.size


def grid_tokens(spec: VisionSpec, grid: PatchGrid) -> int:
    """Slots of an image of this grid."""
    if spec.queries:
        return spec.queries
    ends = grid.rows // spec.merge if spec.row_ends else 0
    return grid.patches // (spec.merge * spec.merge) + spec.keep_class + ends


def mrope_positions(length: int, images: Sequence[PlacedImage], merge: int) -> tuple[NDArray[np.int32], int]:
    """Positions of a prompt for multimodal rotary embedding (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Returns int32 [3, length] (frame, row, column; equal for text) and rope_delta, the difference between position and
    index of later tokens. `images` are in the order of the prompt.
    """
    import numpy as np  # the front counts slots without it

    positions = np.empty((3, length), dtype=np.int32)
    at, next_position = 0, 0
    for start, grid in images:
        rows, columns = grid.rows // merge, grid.columns // merge
        end = start + grid.frames * rows * columns
        if start < at or end > length:
            raise ValueError(f"image slots [{start}, {end}) do not fit a prompt of {length} tokens")
        positions[:, at:start] = np.arange(next_position, next_position + start - at)
        next_position += start - at
        positions[:, start:end] = np.indices((grid.frames, rows, columns)).reshape(3, -1) + next_position
        next_position += max(grid.frames, rows, columns)
        at = end
    positions[:, at:] = np.arange(next_position, next_position + length - at)
    return positions, next_position - at
