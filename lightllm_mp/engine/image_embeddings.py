"""Image embeddings: a worker reads them in place, in the memory that the visual actor writes."""

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
    """Blocks of [planes, rows, hidden] in `dtype` anywhere in `view`, which stays mapped as long as the process lives.
    The first plane has an image's embeddings, the others have DeepStack's.

    For a CUDA `device` the whole memory is pinned once, so that copies from it are asynchronous. The sender of plans
    keeps a block until the steps that name it are answered.
    """

    def __init__(
        self, view: memoryview, *, hidden: int, deepstack: int = 0, dtype: torch.dtype, device: torch.device
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch warns that writes to a read-only mapping are undefined; no code here writes
            self._bytes = torch.frombuffer(view, dtype=torch.uint8)
        self._hidden, self._planes, self._dtype = hidden, 1 + deepstack, dtype
        if device.type == "cuda":
            pin(self._bytes, device, READ_ONLY if view.readonly else 0)

    def rows_of(self, images: Ints, step: Step) -> list[ImageRows]:
        """A plan's `images` (see plan.py) for a step. ValueError if they reach outside the memory or the step."""
        if not len(images):
            return []
        lines = step.lines_of(images[:, :3]).tolist()
        offsets = np.ascontiguousarray(images[:, 3:5]).view("<i8")[:, 0].tolist()
        parts = images[:, [2, 5, 6]].tolist()
        return [
            self._rows(line, offset, count, first, rows)
            for line, offset, (count, first, rows) in zip(lines, offsets, parts, strict=True)
        ]

    def _rows(self, line: int, offset: int, count: int, first: int, rows: int) -> ImageRows:
        """Rows first .. first + count - 1 of the block of `rows` rows at `offset`."""
        end = offset + self._planes * rows * self._hidden * self._dtype.itemsize
        if offset < 0 or offset % self._dtype.itemsize or end > len(self._bytes) or not 0 <= first <= rows - count:
            raise ValueError(
                f"a plan names embeddings {first}..{first + count} of {rows} at {offset} in {len(self._bytes)} bytes"
            )
        planes = self._bytes[offset:end].view(self._dtype).view(self._planes, rows, self._hidden)
        part = planes[:, first : first + count]
        return ImageRows(line, part[0], part[1:] if self._planes > 1 else None)


def pin(memory: torch.Tensor, device: torch.device, flags: int) -> None:
    """Pins `memory` for a CUDA `device`. If CUDA refuses, logs a warning: copies stay correct, but the host waits."""
    with torch.cuda.device(device):
        error = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), flags)
    if int(error) != 0:
        log.warning("CUDA cannot pin image memory of %d bytes (%s): copies will be slower", memory.numel(), error)
