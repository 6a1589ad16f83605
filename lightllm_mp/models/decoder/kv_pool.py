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
    to. With `window_slots`, layers with windows have so many slots of their own, and a spare one.

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
        window_slots: int = 0,
    ) -> None:
        self.slots = slots
        self.spare_slots = (slots, window_slots) if window_slots else (slots,)
        """Of each space of slots."""
        self.states = states
        counts = [window_slots if window_slots and spec.window_of(layer) else slots for layer in spec.kv_layers]
        entries = [_entry(spec.at(layer)) for layer in spec.kv_layers]
        shapes = [
            (1 if latent else 2, count + 1, heads, width)
            for count, (heads, width, latent) in zip(counts, entries, strict=True)
        ]
        flat = lazy_zeros((sum(map(math.prod, shapes)),), dtype, device)
        parts = [part.view(shape) for part, shape in zip(flat.split([*map(math.prod, shapes)]), shapes, strict=True)]
        self.data = flat.view(len(shapes), *shapes[0]) if len(set(shapes)) == 1 else flat
        """[layers, keys and values, slots + 1, heads, width]; flat where layers have heads of different sizes, or slots
        of their own."""
        scales = [_scales(shape[2], shape[1], device) if dtype.itemsize == 1 else None for shape in shapes]
        made = [_layer(part, scale, latent) for part, scale, (_, _, latent) in zip(parts, scales, entries, strict=True)]
        by_number = dict(zip(spec.kv_layers, made, strict=True))
        readers = (layer for layer in range(spec.layers) if layer not in spec.linear_layers)
        self.layers = {layer: by_number[spec.kv_source(layer)] for layer in readers}
        """By number of the layer in the model."""

    @staticmethod
    def token_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
        """Bytes of one token's keys and values over all layers."""
        return sum(KVPool.space_bytes(spec, dtype))

    @staticmethod
    def space_bytes(spec: ModelSpec, dtype: torch.dtype) -> tuple[int, int]:
        """The same of the layers without a window, and of those with one."""
        scale, found = SCALE_TYPE.itemsize if dtype.itemsize == 1 else 0, [0, 0]
        for layer in spec.kv_layers:
            heads, width, latent = _entry(spec.at(layer))
            found[spec.window_of(layer) > 0] += (1 if latent else 2) * heads * (width * dtype.itemsize + scale)
        return found[0], found[1]


def _entry(spec: ModelSpec) -> tuple[int, int, int]:
    """(heads of a token's entry, their width, width of the part of a latent key that is its value; 0: no latents)."""
    if spec.mla is None:
        return spec.kv_heads, spec.head_dim, 0
    return 1, spec.mla.kv_lora + spec.mla.rope_dim, spec.mla.kv_lora


def _layer(part: torch.Tensor, scales: torch.Tensor | None, latent: int) -> LayerKV:
    if latent:
        return LayerKV(part[0], part[0][..., :latent])
    if scales is None:
        return LayerKV(part[0], part[1])
    return LayerKV(part[0], part[1], *scales)


def _scales(heads: int, slots: int, device: torch.device | str) -> torch.Tensor:
    """[2, slots, heads]. A GPU reads the scales of a key and its value together; a CPU's kernels take them in planes of
    their own. A multiple of 8 rows: every layer's scales begin at a multiple of 16 bytes."""
    rows = -slots % ALIGNED_ROWS + slots
    if torch.device(device).type == "cuda":
        return lazy_zeros((rows, heads, 2), SCALE_TYPE, device).permute(2, 0, 1)[:, :slots]
    return lazy_zeros((2, rows, heads), SCALE_TYPE, device)[:, :slots]


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """Zeros. On a CPU the kernel provides pages at the first write, so unused memory costs nothing."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
