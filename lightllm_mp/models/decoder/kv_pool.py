"""The KV cache: keys and values of all layers, by slot."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from lightllm_mp.kernels.table import LayerKV
from lightllm_mp.models.spec import ModelSpec

if TYPE_CHECKING:
    from lightllm_mp.models.decoder.state_pool import StatePool

SCALE_TYPE = torch.float16
"""Type of the scales of 8-bit keys and values, one per token and head."""
ALIGNED_ROWS = 8


class KVPool:
    """Keys and values of all layers that keep some, one slot per token. Slot `slots` is a spare one that padding writes
    to.

    They are stored in `dtype`: the model's own type, or int8 or float8_e4m3fn with scales. `states` are those of the
    other layers, in models with linear attention.
    """

    def __init__(
        self,
        spec: ModelSpec,
        slots: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        states: StatePool | None = None,
    ) -> None:
        self.slots = slots
        self.dummy_slot = slots
        self.states = states
        planes = len(spec.kv_layers)
        heads, width, latent = _entry(spec)
        kinds = 1 if latent else 2
        self.data = lazy_zeros((planes, kinds, slots + 1, heads, width), dtype, device)
        scaled = dtype.itemsize == 1
        # A multiple of 8 rows: every layer's scales begin at a multiple of 16 bytes.
        rows = -(slots + 1) % ALIGNED_ROWS + slots + 1
        # A GPU reads the scales of a key and its value together; a CPU's kernels take them in planes of their own.
        together = torch.device(device).type == "cuda"
        shape = (rows, heads, kinds) if together else (kinds, rows, heads)
        scales = lazy_zeros((planes, *shape), SCALE_TYPE, device) if scaled else None
        self.scales = scales.permute(0, 3, 1, 2) if together and scales is not None else scales
        """[layers, 2, rows, heads] or None."""
        self.layers = {layer: self._layer(plane, latent) for plane, layer in enumerate(spec.kv_layers)}
        """By number of the layer in the model."""

    def _layer(self, i: int, latent: int) -> LayerKV:
        keys = self.data[i, 0]
        if latent:
            return LayerKV(keys, keys[..., :latent])
        if self.scales is None:
            return LayerKV(keys, self.data[i, 1])
        key_scales, value_scales = self.scales[i, :, : self.slots + 1]
        return LayerKV(keys, self.data[i, 1], key_scales, value_scales)

    @staticmethod
    def token_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
        """Bytes of one token's keys and values over all layers."""
        heads, width, latent = _entry(spec)
        scale = SCALE_TYPE.itemsize if dtype.itemsize == 1 else 0
        return len(spec.kv_layers) * (1 if latent else 2) * heads * (width * dtype.itemsize + scale)


def _entry(spec: ModelSpec) -> tuple[int, int, int]:
    """(heads of a token's entry, their width, width of the part of a latent key that is its value; 0: no latents)."""
    if spec.mla is None:
        return spec.kv_heads, spec.head_dim, 0
    return 1, spec.mla.kv_lora + spec.mla.rope_dim, spec.mla.kv_lora


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """Zeros. On a CPU the kernel provides pages at the first write, so unused memory costs nothing."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
