"""The KV write: stores keys and values in their tokens' slots, rounded if the pool stores 8 bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import LayerKV
from lightllm_mp.kernels.triton.attention.score_transforms import spacing
from lightllm_mp.kernels.triton.block_sizes import next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel

HEADS_EACH = 16
"""The most heads of one token that a program handles."""
ELEMENTS_EACH = 8192


def kv_write(keys: Tensor, values: Tensor, kv: LayerKV, batch: Batch) -> None:
    _write(keys, kv.keys, kv.key_scales, batch, 0)
    if kv.values.data_ptr() != kv.keys.data_ptr():
        _write(values, kv.values, value_base(kv), batch, spacing(kv.value_scales) - 1)


def value_base(kv: LayerKV) -> Tensor | None:
    """The scales of values; those of keys if each key's scale precedes its value's, because that address is aligned."""
    return kv.key_scales if spacing(kv.key_scales) == 2 else kv.value_scales


def _write(x: Tensor, pool: Tensor, scales: Tensor | None, batch: Batch, offset: int) -> None:
    """`x` [tokens, heads, dim] may be a view; its last dimension is contiguous, or is made so. Scales are stored
    `offset` elements after their place."""
    tokens, heads, dim = x.shape
    if not tokens:
        return
    x = x if x.stride(2) == 1 else x.contiguous()
    block = next_power_of_2(dim)
    each = min(HEADS_EACH, next_power_of_2(heads), max(1, ELEMENTS_EACH // block))
    _write_kernel.launch(
        (tokens, triton.cdiv(heads, each), 1),
        _write_kernel.arguments(
            x=x,
            pool=pool,
            scales=pool if scales is None else scales,
            slots=batch.slots,
            token_stride=x.stride(0),
            head_stride=x.stride(1),
            HEADS=heads,
            DIM=dim,
            BLOCK=block,
            EACH=each,
            SPACING=spacing(scales),
            OFFSET=offset,
            LARGEST=largest(pool, scales),
        ),
    )


def largest(pool: Tensor, scales: Tensor | None) -> float:
    """The largest value that an 8-bit pool stores: 127 for integers; 0 if the pool has no scales."""
    if scales is None:
        return 0.0
    return 127.0 if pool.dtype == torch.int8 else torch.finfo(pool.dtype).max


@triton.jit
def scale_of(magnitude, LARGEST: tl.constexpr):
    """The float16 scale to store and the divisor, for heads with these largest magnitudes. Float16 has no normal number
    below 2^-14."""
    scale = tl.div_rn(magnitude, tl.full(magnitude.shape, LARGEST, tl.float32)).to(tl.float16)
    return scale, tl.maximum(scale.to(tl.float32), 6.103515625e-05)


@triton.jit
def in_steps(x, step, LARGEST: tl.constexpr):
    """x / step as it will be stored, still in float32. Integers are rounded to the nearest, ties to even."""
    steps = tl.div_rn(x, tl.broadcast_to(step, x.shape))
    if LARGEST == 127.0:
        steps = (steps + 12582912.0) - 12582912.0  # 1.5 * 2^23: float32 has no fractions there
    return tl.minimum(tl.maximum(steps, -LARGEST), LARGEST)


@kernel(numbers=["token_stride", "head_stride"])
def _write_kernel(
    x,
    pool,
    scales,
    slots,
    token_stride,
    head_stride,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    EACH: tl.constexpr,
    SPACING: tl.constexpr,
    OFFSET: tl.constexpr,
    LARGEST: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * EACH + tl.arange(0, EACH))[:, None]
    d = tl.arange(0, BLOCK)[None, :]
    inside = (head < HEADS) & (d < DIM)
    value = tl.load(x + token * token_stride + head * head_stride + d, mask=inside, other=0.0)
    place = tl.load(slots + token).to(tl.int64) * HEADS + head
    if LARGEST > 0.0:
        wide = value.to(tl.float32)
        scale, step = scale_of(tl.max(tl.abs(wide), 1)[:, None], LARGEST)
        tl.store(scales + SPACING * place + OFFSET, scale, mask=head < HEADS)
        tl.store(pool + place * DIM + d, in_steps(wide, step, LARGEST).to(pool.dtype.element_ty), mask=inside)
    else:
        tl.store(pool + place * DIM + d, value.to(pool.dtype.element_ty), mask=inside)
