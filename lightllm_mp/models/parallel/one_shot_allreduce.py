"""All-reduce of small tensors over GPUs of one host: every rank reads its peers' memory and adds in rank order.

A sum is one kernel, without the protocol steps that make up NCCL's latency. It copies the rank's part to memory that
all ranks can read, waits until the peers have done so, and adds. It reads size - 1 whole tensors, so it suits small
ones.
"""

from __future__ import annotations

import logging
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

log = logging.getLogger(__name__)

TYPES = (torch.float32, torch.bfloat16)
ALIGNMENT = 16
"""Bytes of the kernel's accesses; smaller ones are slow."""


class Peers(Protocol):
    """The part of the group that the set-up needs."""

    def least(self, value: int) -> int: ...


class OneShotAllreduce:
    """Holds memory of `limit` bytes on each rank that its peers can read. Without such memory `takes` is always False.

    Sums of one process must not run on two streams at once.
    """

    def __init__(self, limit: int, device: torch.device, peers: Peers) -> None:
        self.limit = limit
        """Bytes of the largest sum that is taken; may be lowered, on all ranks alike."""
        self._group = dist.group.WORLD.group_name
        self._buffers: dict[torch.dtype, Tensor] = {}
        shared = self._shared(limit, device)
        # All ranks or none: a sum must go the same way on every rank.
        if peers.least(int(shared is not None)) and shared is not None:
            self._buffers = {dtype: shared.view(dtype) for dtype in TYPES}

    def takes(self, x: Tensor) -> bool:
        """Whether to use `sum` for `x`; the answer is equal on all ranks for equal shapes and dtypes."""
        buffer = self._buffers.get(x.dtype)
        size, offset = x.numel() * x.element_size(), x.storage_offset() * x.element_size()
        aligned = size % ALIGNMENT == offset % ALIGNMENT == 0
        return buffer is not None and 0 < size <= self.limit and aligned and x.is_contiguous()

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the ranks, in newly allocated memory."""
        shared = self._buffers[x.dtype][: x.numel()].view(x.shape)
        return torch.ops.symm_mem.one_shot_all_reduce_copy(shared, x, "sum", self._group)

    def _shared(self, limit: int, device: torch.device) -> Tensor | None:
        try:
            import torch.distributed._symmetric_memory as symmetric

            shared = symmetric.empty(limit, dtype=torch.uint8, device=device)
            symmetric.rendezvous(shared, self._group)
            return shared
        except (ImportError, RuntimeError) as error:
            log.warning("peers' memory cannot be read directly, NCCL sums everything: %s", str(error).splitlines()[0])
            return None
