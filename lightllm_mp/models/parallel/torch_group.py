"""Tensor-parallel ranks that meet through torch.distributed: gloo between CPU processes, NCCL between GPUs.

The ranks find each other through a file that only they can open, and talk over the loopback device alone. The
supervisor kills ranks that wait for a lost one: it sees a death at once and a hang by its watchdog.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from lightllm_mp.models.parallel.one_shot_allreduce import OneShotAllreduce

ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    # NVLink multicast needs rights that containers often lack, and a program that dies in it can block the switch.
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
    # A communicator that fails ends its process; no report about it is collected.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
}

ONE_SHOT_BYTES = {2: 2 << 20, 4: 512 << 10, 8: 256 << 10}
"""Number of ranks -> bytes of the largest sum that goes through `OneShotAllreduce`."""

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class TorchGroup:
    """The `RankGroup` of one process, which has only one. Methods raise RuntimeError when a peer is lost.

    `meeting` is a file, empty at first, that all ranks can open; they wait `timeout` seconds for each other. On CUDA,
    sums of up to `one_shot_bytes` (None: a default by `size`; 0: none) of float32 or bfloat16 go without NCCL and must
    not run on two streams at once. All methods but `least` may be captured in a CUDA graph.
    """

    def __init__(
        self,
        meeting: str,
        rank: int,
        size: int,
        device: torch.device,
        *,
        timeout: float = 1800.0,
        one_shot_bytes: int | None = None,
    ) -> None:
        os.environ.update(ENVIRONMENT)
        self.rank, self.size = rank, size
        on_cuda = device.type == "cuda"
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
            store=dist.FileStore(meeting, size),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
            device_id=device if on_cuda else None,
        )
        limit = ONE_SHOT_BYTES.get(size, 0) if one_shot_bytes is None else one_shot_bytes
        self.one_shot = OneShotAllreduce(limit, device, self) if on_cuda and limit else None

    def sum(self, x: Tensor) -> Tensor:
        if self.one_shot is not None and self.one_shot.takes(x):
            return self.one_shot.sum(x)
        dist.all_reduce(x)
        return x

    def side_by_side(self, x: Tensor) -> Tensor:
        parts = x.new_empty((self.size * x.shape[0], x.shape[1]))
        _all_gather(parts, x.contiguous())
        return parts.view(self.size, *x.shape).transpose(0, 1).reshape(x.shape[0], -1)

    def from_first(self, x: Tensor) -> Tensor:
        dist.broadcast(x, src=0)
        return x

    def least(self, value: int) -> int:
        least = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def close(self) -> None:
        """Leaves the group; all ranks call it at about the same time."""
        self.one_shot = None
        dist.destroy_process_group()
