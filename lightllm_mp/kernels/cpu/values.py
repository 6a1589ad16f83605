"""Converts Python values for the extension, whose arguments are all integers."""

from __future__ import annotations

import struct
from functools import lru_cache

import torch
from torch import Tensor

TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Numbers of the types of activations and plain weights."""
KV_TYPES = {**TYPES, torch.int8: 2, torch.float8_e4m3fn: 3}
"""Numbers of the types of stored keys and values."""
CURVES = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "quick_gelu": 4, "swiglu_oai": 5}
"""Numbers of the activations, by their name in the op table."""


def float_bits(value: float) -> int:
    """The bit pattern of a float32."""
    bits = _FLOAT_BITS.get(value)
    if bits is None:
        bits = _FLOAT_BITS[value] = struct.unpack("<I", struct.pack("<f", value))[0]
    return bits


_FLOAT_BITS: dict[float, int] = {}


@lru_cache
def floats(values: tuple[float, ...]) -> Tensor:
    """A float32 tensor of the values. The cache keeps it alive, so its address stays valid."""
    return torch.tensor(values, dtype=torch.float32)
