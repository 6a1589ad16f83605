"""Sizes the shared memory that image input needs. Imports no torch."""

from __future__ import annotations

from math import isqrt

from lightllm_mp.actors.topology import ImageArenas
from lightllm_mp.config import MultimodalConfig
from lightllm_mp.shm.arena import BLOCK_HEADER
from lightllm_mp.vision.sizing import grid_tokens, patch_grid
from lightllm_mp.vision.spec import VisionSpec

GRANULE = 65536
DEFAULT_CACHE = 1 << 30
"""Most bytes of the image cache by default; more only if one image needs more."""
HALF = ("bfloat16", "float16", "bf16", "fp16")


def image_arenas(images: MultimodalConfig, data_type: str, spec: VisionSpec) -> ImageArenas:
    """Bytes of the image cache and of the arena for files sent to the visual actor."""
    value = 2 if data_type in HALF else 4
    image = _granules(BLOCK_HEADER + most_rows(spec) * spec.slot_values * value)
    given = images.cache_size_gb
    cache = min(images.cache_capacity * image, max(DEFAULT_CACHE, image)) if given is None else int(given * (1 << 30))
    files = images.max_image_bytes_per_request + (images.max_images_per_request + 1) * 2 * GRANULE
    return ImageArenas(cache=_granules(cache), files=_granules(max(files, images.max_bytes_per_image + 2 * GRANULE)))


def most_rows(spec: VisionSpec) -> int:
    """Embedding rows of the largest image or video."""
    steps = spec.preprocess
    if steps.mode != "dynamic":
        return grid_tokens(spec, patch_grid(spec, steps.size, steps.size))
    most = max(steps.max_pixels, spec.video.max_pixels // spec.temporal if spec.video else 0)
    rows = most // (spec.patch * spec.merge) ** 2
    return rows + spec.keep_class + (isqrt(rows) if spec.row_ends else 0)


def _granules(size: int) -> int:
    return -(-size // GRANULE) * GRANULE
