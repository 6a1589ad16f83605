"""Image embeddings, which a worker reads in place in the memory that the visual actor writes."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import torch

from lightllm_mp.engine.step_inputs import Step
from lightllm_mp.models.decoder.embedding import ImageRows
from lightllm_mp.plan import Ints

log = logging.getLogger("lightllm_mp.worker")

PORTABLE, READ_ONLY = 0x01, 0x08
"""cudaHostRegisterPortable (for all devices) and cudaHostRegisterReadOnly."""


class ImageEmbeddings:
    """Blocks of [rows, hidden] in `dtype` anywhere in `view`, which stays mapped as long as the process lives.

    For a CUDA `device` the whole memory is pinned once, so that copies from it are asynchronous. The sender of plans
    keeps a block until the steps that name it are answered.
    """

    def __init__(self, view: memoryview, *, hidden: int, dtype: torch.dtype, device: torch.device) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch warns that writes to a read-only mapping are undefined; no code here writes
            self._bytes = torch.frombuffer(view, dtype=torch.uint8)
        self._hidden, self._dtype = hidden, dtype
        self._row_bytes = hidden * dtype.itemsize
        if device.type == "cuda":
            pin(self._bytes, device, READ_ONLY if view.readonly else 0)

    def rows_of(self, images: Ints, step: Step) -> list[ImageRows]:
        """A plan's `images` (see plan.py) for a step. ValueError if they reach outside the memory or the step."""
        if not len(images):
            return []
        lines = step.lines_of(images[:, :3]).tolist()
        offsets = np.ascontiguousarray(images[:, 3:5]).view("<i8")[:, 0].tolist()
        counts, firsts = images[:, 2].tolist(), images[:, 5].tolist()
        return [
            ImageRows(line, self._rows(offset, first, count))
            for line, offset, first, count in zip(lines, offsets, firsts, counts, strict=True)
        ]

    def _rows(self, offset: int, first: int, count: int) -> torch.Tensor:
        begin = offset + first * self._row_bytes
        end = begin + count * self._row_bytes
        if offset < 0 or first < 0 or offset % self._dtype.itemsize or end > len(self._bytes):
            raise ValueError(f"a plan names embeddings at {begin}..{end} of {len(self._bytes)} bytes")
        return self._bytes[begin:end].view(self._dtype).view(count, self._hidden)


def pin(memory: torch.Tensor, device: torch.device, flags: int) -> None:
    """Pins `memory` for a CUDA `device`. If CUDA refuses, logs a warning: copies are correct, but the host waits."""
    with torch.cuda.device(device):
        error = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), flags)
    if int(error) != 0:
        log.warning("CUDA cannot pin image memory of %d bytes (%s): copies will be slower", memory.numel(), error)
