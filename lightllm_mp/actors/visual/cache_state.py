"""What is in the image cache now, for people who watch: no content, and of keys only the start."""

from __future__ import annotations

from lightllm_mp.messages import MOST_SHOWN, ImageCacheState, ImageState
from lightllm_mp.vision.cache import BlockStore, ImageCache

KEY_BYTES = 4


def image_cache_state(cache: ImageCache, store: BlockStore, working: int, now: float) -> ImageCacheState:
    """The answer to Inspect. `working`: images that are not encoded yet; `now`: monotonic time in seconds."""
    images = tuple(
        ImageState(
            one.wanted.key[:KEY_BYTES], one.wanted.rows, one.wanted.nbytes, one.ready, one.leases, now - one.since
        )
        for one in cache.newest(MOST_SHOWN)
    )
    return ImageCacheState(
        cache.items, cache.capacity, store.used, store.capacity, cache.leased, cache.waiting, working, images
    )
