"""Tensor-parallel ranks that meet through torch.distributed: gloo between CPU processes, NCCL between GPUs.

The ranks of one machine find each other through a file that only they can open, and talk over the loopback device
alone. Those of several machines find each other at an address of the first one, and talk over the network that leads
there. The supervisor kills ranks that wait for a lost one: it sees a death at once and a hang by its watchdog.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from lightllm_mp.models.parallel.one_shot_allreduce import OneShotAllreduce

ENVIRONMENT = {
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

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
SIOCGIFADDR = 0x8915

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class TorchGroup:
    """The `RankGroup` of one process, which has only one. Methods raise RuntimeError when a peer is lost.

    `meeting` is a file, empty at first, that all ranks can open, or for ranks of several machines HOST:PORT, where rank
    0 serves a store on the listening socket `meeting_fd`, which it takes over. They wait `timeout` seconds for each
    other. On CUDA, sums of up to `one_shot_bytes` (None: a default by `size`; 0: none) of float32 or bfloat16 go
    without NCCL and must not run on two streams at once; it is for one machine. All methods but `least` may be captured
    in a CUDA graph.
    """

    def __init__(
        self,
        meeting: str,
        rank: int,
        size: int,
        device: torch.device,
        *,
        meeting_fd: int = -1,
        timeout: float = 1800.0,
        one_shot_bytes: int | None = None,
    ) -> None:
        host, colon, port = ("", "", "") if meeting.startswith("/") else meeting.rpartition(":")
        os.environ.update(ENVIRONMENT)
        os.environ.update(interfaces(host, os.environ) if colon else dict.fromkeys(INTERFACES, "lo"))
        self.rank, self.size = rank, size
        on_cuda = device.type == "cuda"
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
            store=_store(host, int(port), rank, size, timeout, meeting_fd) if colon else dist.FileStore(meeting, size),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
            device_id=device if on_cuda else None,
        )
        usual = 0 if colon else ONE_SHOT_BYTES.get(size, 0)
        limit = usual if one_shot_bytes is None else one_shot_bytes
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


def _store(host: str, port: int, rank: int, size: int, timeout: float, listen_fd: int) -> dist.Store:
    """The store at an address of the first machine; rank 0 serves it."""
    served = {"master_listen_fd": listen_fd} if rank == 0 else {}
    return dist.TCPStore(host, port, size, rank == 0, timedelta(seconds=timeout), wait_for_workers=False, **served)


def interfaces(host: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that bind gloo and NCCL to the network that leads to `host`, as far as the operator has not set
    them."""
    name = _interface_to(host)
    return {variable: name for variable in INTERFACES if name and not environment.get(variable)}


def _interface_to(host: str) -> str:
    """The interface with the address from which this machine speaks to `host`; empty if none has it (IPv6)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((host, 1))  # sends nothing
        except OSError:
            return ""
        own = socket.inet_aton(sock.getsockname()[0])
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(sock, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has no address
                continue
            if found[20:24] == own:
                return name
    return ""
