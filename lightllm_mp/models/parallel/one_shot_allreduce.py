"""Sums of small tensors over GPUs of one host without NCCL: every rank reads its peers' memory and adds, in rank order.

NCCL's latency is made of its protocol's steps; here a sum is one kernel that copies the rank's own part to memory that
all ranks see, waits for the peers to have done the same, and adds. It reads (size - 1) whole tensors, so that it is for
small ones.
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
"""Bytes of the accesses of the kernel; smaller pieces are slow."""


class Peers(Protocol):
    """What the set-up asks of the group."""

    def least(self, value: int) -> int: ...


class OneShotAllreduce:
    """Memory of `limit` bytes on each rank that its peers can read. Where that cannot be had, `takes` takes nothing.

    One sum at a time: sums of one process must not run on two streams at once.
    """

    def __init__(self, limit: int, device: torch.device, peers: Peers) -> None:
        self.limit = limit
        """The largest sum in bytes that is taken; may be lowered, on all ranks alike."""
        self._group = dist.group.WORLD.group_name
        self._buffers: dict[torch.dtype, Tensor] = {}
        shared = self._shared(limit, device)
        # All ranks or none: they must take the same way.
        if peers.least(int(shared is not None)) and shared is not None:
            self._buffers = {dtype: shared.view(dtype) for dtype in TYPES}

    def takes(self, x: Tensor) -> bool:
        """Whether `sum` can and should be used for `x`; the same on all ranks for equal shapes and types."""
        buffer = self._buffers.get(x.dtype)
        size, offset = x.numel() * x.element_size(), x.storage_offset() * x.element_size()
        aligned = size % ALIGNMENT == offset % ALIGNMENT == 0
        return buffer is not None and 0 < size <= self.limit and aligned and x.is_contiguous()

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the ranks, in memory of its own."""
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
