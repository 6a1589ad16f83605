"""Carries a step's numbers to the device: one copy from pinned memory, which nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

FIRST_WORDS = 1 << 16
"""Buffers are this long at first and grow to what a step needs."""


class Staging:
    """A ring of pinned buffers: one is filled again only when its copy has been made."""

    def __init__(self, device: torch.device, depth: int = 3) -> None:
        self._device, self._next = device, 0
        self._buffers = [_pinned(FIRST_WORDS, device) for _ in range(depth)]
        self._copied: list[torch.cuda.Event | None] = [None] * depth

    def send(self, parts: Sequence[np.ndarray]) -> tuple[Tensor, list[Tensor]]:
        """All parts (integers below 2^31) as one int32 tensor on the device, and each part's view of it."""
        ends = np.cumsum([len(part) for part in parts])
        total = int(ends[-1])
        host = self._free_buffer(total)[:total]
        np.concatenate(parts, out=host.numpy(), casting="unsafe")
        there = torch.empty(total, dtype=torch.int32, device=self._device).copy_(host, non_blocking=True)
        self._mark()
        return there, list(there.split([len(part) for part in parts]))

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
