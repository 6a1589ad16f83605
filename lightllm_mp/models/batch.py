"""The inputs of one forward step, and the KV memory it reads and writes."""

from __future__ import annotations

import math

import numpy as np
import torch

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.models.spec import ModelSpec

__all__ = ["Batch", "KVPool"]


class KVPool:
    """Keys and values of all layers, one slot per token. Slot `slots` is spare: padding may write there."""

    def __init__(self, spec: ModelSpec, slots: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.slots = slots
        self.dummy_slot = slots
        shape = (spec.layers, 2, slots + 1, spec.kv_heads, spec.head_dim)
        self.data = (
            _lazy_zeros(shape, dtype)
            if torch.device(device).type == "cpu"
            else torch.zeros(shape, dtype=dtype, device=device)
        )
        self.keys = [self.data[layer, 0] for layer in range(spec.layers)]
        """Per layer [slots + 1, kv_heads, head_dim]."""
        self.values = [self.data[layer, 1] for layer in range(spec.layers)]

    @staticmethod
    def token_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
        """Bytes that one token's keys and values take over all layers."""
        return spec.layers * 2 * spec.kv_size * dtype.itemsize


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros whose pages the system provides when they are first written: an unused pool costs nothing."""
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
