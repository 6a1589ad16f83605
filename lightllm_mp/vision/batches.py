"""Encodes pictures in batches, in a thread of its own: the loop that asks never waits for a tower."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import torch

from lightllm_mp.errors import EngineError
from lightllm_mp.vision.encoder import VisionEncoder
from lightllm_mp.vision.preprocess import Preprocessed

Write = Callable[[torch.Tensor], None]
"""Puts the embeddings [rows, out] of one picture where they belong; called in the encoder's thread."""


@dataclass(slots=True)
class _Waiting:
    image: Preprocessed
    write: Write
    done: asyncio.Future[None]


class EncoderBatches:
    """`budget` is the most patches of one batch; a picture that has more is a batch of its own."""

    def __init__(self, encoder: VisionEncoder, budget: int) -> None:
        self.budget = budget
        self.batches = 0
        self.images = 0
        self.seconds = 0.0
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._queue: deque[_Waiting] = deque()
        self._running = False

    @property
    def waiting(self) -> int:
        """Patches that no batch has taken yet."""
        return sum(one.image.grid.patches for one in self._queue)

    async def encode(self, image: Preprocessed, write: Write) -> None:
        """Returns when the embeddings are written. Raises EngineError where they need too much memory."""
        one = _Waiting(image, write, asyncio.get_running_loop().create_future())
        self._queue.append(one)
        if not self._running:
            self._next()
        await one.done

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _next(self) -> None:
        batch = self._batch()
        self._running = bool(batch)
        if batch:
            work = asyncio.get_running_loop().run_in_executor(self._thread, self._work, batch)
            work.add_done_callback(lambda done: self._finished(batch, done))

    def _batch(self) -> list[_Waiting]:
        """What fits, in order."""
        batch: list[_Waiting] = []
        room = self.budget
        while self._queue and (not batch or self._queue[0].image.grid.patches <= room):
            batch.append(self._queue.popleft())
            room -= batch[-1].image.grid.patches
        return batch

    def _work(self, batch: list[_Waiting]) -> list[EngineError | None]:
        begin = perf_counter()
        found = self._encode(batch)
        self.batches, self.images = self.batches + 1, self.images + len(batch)
        self.seconds += perf_counter() - begin
        return found

    def _encode(self, batch: list[_Waiting]) -> list[EngineError | None]:
        """What went wrong with each, None where nothing did."""
        try:
            for one, rows in zip(batch, self._encoder.encode([one.image for one in batch]), strict=True):
                one.write(rows)
            return [None] * len(batch)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        if len(batch) == 1:
            return [EngineError("an image needs more memory to be encoded than there is")]
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
