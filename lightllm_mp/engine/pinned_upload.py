"""Uploads a step's numbers in one asynchronous copy from pinned memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightllm_mp.kernels.triton.block_sizes import round_up

ALIGNED = 4
"""Words: 16 bytes."""
FIRST_WORDS = 1 << 16
"""Initial length of a buffer in words. Buffers grow to what a step needs."""


class Uploaded(NamedTuple):
    """One upload on the device."""

    words: Tensor
    """int32: the whole upload."""
    starts: list[int]
    """Start of each edit in `words`."""
    views: list[Tensor]
    """Views of the parts."""


class PinnedUpload:
    """A ring of pinned buffers. A buffer is filled again only after its copy is done."""

    def __init__(self, device: torch.device, depth: int = 3) -> None:
        self._device, self._next = device, 0
        self._buffers = [_pinned(FIRST_WORDS, device) for _ in range(depth)]
        self._copied: list[torch.cuda.Event | None] = [None] * depth

    def send(self, edits: Sequence[np.ndarray], parts: Sequence[np.ndarray] = ()) -> Uploaded:
        """Uploads integers below 2^31. Kernels find `edits` by offsets and `parts` by views. Each array begins at a
        multiple of ALIGNED, because launches with such addresses are faster."""
        lengths = [len(array) for array in (*edits, *parts)]
        starts = [0, *accumulate(round_up(length, ALIGNED) for length in lengths)]
        words, first = self._carry((*edits, *parts), starts), len(edits)
        empty = words[:0]
        places = zip(starts[first:], lengths[first:], strict=False)
        return Uploaded(words, starts[:first], [words[at : at + length] if length else empty for at, length in places])

    def send_close(self, parts: Sequence[np.ndarray]) -> Tensor:
        """Uploads all parts as one int32 tensor without gaps."""
        return self._carry(parts, [0, *accumulate(len(part) for part in parts)])

    def _carry(self, parts: Sequence[np.ndarray], starts: list[int]) -> Tensor:
        """Uploads the parts at `starts`, whose last entry is the total length."""
        host = self._free_buffer(starts[-1])[: starts[-1]]
        words = host.numpy()
        for part, start in zip(parts, starts, strict=False):
            if len(part):
                words[start : start + len(part)] = part
        there = torch.empty(starts[-1], dtype=torch.int32, device=self._device).copy_(host, non_blocking=True)
        self._mark()
        return there

    def _free_buffer(self, words: int) -> Tensor:
        if (copied := self._copied[self._next]) is not None:
            copied.synchronize()
        if self._buffers[self._next].shape[0] < words:
            self._buffers[self._next] = _pinned(1 << (words - 1).bit_length(), self._device)
        return self._buffers[self._next]

    def _mark(self) -> None:
        if self._device.type == "cuda":
            copied = self._copied[self._next] = torch.cuda.Event()
            copied.record()
        self._next = (self._next + 1) % len(self._buffers)


def _pinned(words: int, device: torch.device) -> Tensor:
    return torch.empty(words, dtype=torch.int32, pin_memory=device.type == "cuda")
