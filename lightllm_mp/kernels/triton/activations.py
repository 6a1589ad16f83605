"""Activations inside a kernel, chosen by a compile-time number."""

from __future__ import annotations

import triton
import triton.language as tl

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "quick_gelu": 4, "swiglu_oai": 5}
"""Numbers for `gated` and, but for the last, `activated`, by the op table's names."""


@triton.jit
def gated(gate, up, KIND: tl.constexpr):
    """The activation of one float32 block times another."""
    if KIND == 5:
        gate = tl.where(gate > 7.0, 7.0, gate)
        up = tl.where(up > 7.0, 7.0, tl.where(up < -7.0, -7.0, up)) + 1.0
        result = activated(gate, 4) * up
    else:
        result = activated(gate, KIND) * up
    return result


@triton.jit
def activated(x, KIND: tl.constexpr):
    """The activation of a float32 block. gelu_tanh is x * sigmoid(2 u), which is 0.5 x (1 + tanh u)."""
    if KIND == 0:
        result = x / (1.0 + tl.exp(-x))
    elif KIND == 1:
        result = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == 2:
        result = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif KIND == 4:
        result = x / (1.0 + tl.exp(-1.702 * x))
    else:
        result = tl.where(x < 0.0, 0.0, x)
    return result
