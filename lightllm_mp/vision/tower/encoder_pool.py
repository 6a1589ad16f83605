"""Several copies of a vision tower, each with its own device and thread, behind one interface."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lightllm_mp.vision.preprocess import Preprocessed
from lightllm_mp.vision.tower.encoder import VisionEncoder
from lightllm_mp.vision.tower.encoder_batcher import EncoderBatcher, Write


class EncoderPool:
    """An image goes to the encoder with the fewest unencoded patches. `budget` is the most patches of one batch.
    Counters are sums over all encoders."""

    def __init__(self, encoders: Sequence[VisionEncoder], budget: int) -> None:
        self._all = [EncoderBatcher(encoder, budget) for encoder in encoders]

    def __len__(self) -> int:
        return len(self._all)

    @property
    def full(self) -> bool:
        """Every encoder has its next two batches."""
        return all(one.waiting >= 2 * one.budget for one in self._all)

    @property
    def queued(self) -> int:
        """Images that are decoded and not yet encoded."""
        return sum(one.queued for one in self._all)

    @property
    def batches(self) -> int:
        return sum(one.batches for one in self._all)

    @property
    def images(self) -> int:
        return sum(one.images for one in self._all)

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self._all)

    def encode(self, image: Preprocessed, write: Write) -> asyncio.Future[None]:
        """As EncoderBatcher.encode; `write` is called in the thread of the encoder that takes the image."""
        return min(self._all, key=lambda one: one.load).encode(image, write)

    def close(self) -> None:
        for one in self._all:
            one.close()
