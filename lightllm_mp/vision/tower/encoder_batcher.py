"""Encodes images in batches, in a thread of its own: the event loop never waits for a tower."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import torch

from lightllm_mp.errors import EngineError
from lightllm_mp.vision.preprocess import Preprocessed
from lightllm_mp.vision.tower.encoder import VisionEncoder

log = logging.getLogger("lightllm_mp.visual")

HOPELESS = 3
"""After this many failing batches in a row the images are not the cause: the process must be replaced."""

Write = Callable[[torch.Tensor], None]
"""Stores the embeddings [rows, out] of one image; called in the encoder's thread."""


@dataclass(slots=True)
class _Waiting:
    image: Preprocessed
    write: Write
    done: asyncio.Future[None]


class EncoderBatcher:
    """Batches of up to `budget` patches; a larger image is a batch of its own."""

    def __init__(self, encoder: VisionEncoder, budget: int) -> None:
        self.budget = budget
        self.batches = 0
        self.images = 0
        self.seconds = 0.0
        self._failed = 0
        """Number of batches in a row that failed entirely."""
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._queue: deque[_Waiting] = deque()
        self._batch: list[_Waiting] = []
        """The images that are being encoded."""

    @property
    def waiting(self) -> int:
        """Patches that are not in a batch yet."""
        return sum(one.image.grid.patches for one in self._queue)

    @property
    def load(self) -> int:
        """Patches that are not encoded yet."""
        return self.waiting + sum(one.image.grid.patches for one in self._batch)

    @property
    def queued(self) -> int:
        """Images that are decoded and not yet encoded."""
        return len(self._queue) + len(self._batch)

    def encode(self, image: Preprocessed, write: Write) -> asyncio.Future[None]:
        """Done when the embeddings are written. Fails with EngineError for this image, or with RuntimeError when the
        encoder is broken or closed."""
        one = _Waiting(image, write, asyncio.get_running_loop().create_future())
        self._queue.append(one)
        if not self._batch:
            self._next()
        return one.done

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _next(self) -> None:
        batch = self._batch = self._next_batch()
        if batch:
            work = asyncio.get_running_loop().run_in_executor(self._thread, self._work, batch)
            work.add_done_callback(lambda done: self._finished(batch, done))

    def _next_batch(self) -> list[_Waiting]:
        """The next images that fit, in order."""
        batch: list[_Waiting] = []
        room = self.budget
        while self._queue and (not batch or self._queue[0].image.grid.patches <= room):
            batch.append(self._queue.popleft())
            room -= batch[-1].image.grid.patches
        return batch

    def _work(self, batch: list[_Waiting]) -> list[EngineError | None]:
        begin = perf_counter()
        found = self._encode(batch)
        self._failed = self._failed + 1 if all(found) else 0
        if self._failed >= HOPELESS:
            raise RuntimeError(f"{HOPELESS} batches of images in a row could not be encoded")
        self.batches, self.images = self.batches + 1, self.images + len(batch)
        self.seconds += perf_counter() - begin
        return found

    def _encode(self, batch: list[_Waiting]) -> list[EngineError | None]:
        """The error of each image, None for success. A failing batch is retried in halves, so that one image does not
        fail the others."""
        try:
            for one, rows in zip(batch, self._encoder.encode([one.image for one in batch]), strict=True):
                one.write(rows)
            return [None] * len(batch)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            error = EngineError("an image needs more memory to be encoded than there is")
        except Exception:
            log.exception("a batch of %d images could not be encoded", len(batch))
            error = EngineError("an image could not be encoded")
        if len(batch) == 1:
            return [error]
        half = len(batch) // 2
        return self._encode(batch[:half]) + self._encode(batch[half:])

    def _finished(self, batch: list[_Waiting], work: asyncio.Future[list[EngineError | None]]) -> None:
        if work.cancelled():
            return
        bug = work.exception()
        errors = [bug] * len(batch) if bug is not None else work.result()
        for one, error in zip(batch, errors, strict=True):
            if one.done.done():
                continue
            if error is None:
                one.done.set_result(None)
            else:
                one.done.set_exception(error)
        self._next()
