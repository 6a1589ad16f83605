"""Shared by the kernels of the delta rule: the factors of a token, and the convolution's inputs."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def log_decay(ba, dt_bias, decay, token, head, there, HEADS: tl.constexpr):
    """Logarithms of the decays of tokens, and their betas; 0 without a token."""
    start = ba + token.to(tl.int64) * (2 * HEADS) + head
    b = tl.load(start, mask=there, other=0.0)
    a = tl.load(start + HEADS, mask=there, other=0.0) + tl.load(dt_bias + head)
    softplus = tl.where(a > 20.0, a, tl.log(1.0 + tl.exp(tl.minimum(a, 20.0))))
    beta = tl.where(there, 1.0 / (1.0 + tl.exp(-b)), 0.0)
    return tl.where(there, -tl.load(decay + head) * softplus, 0.0), beta


@triton.jit
def keep_inputs(
    projected, inputs, first, count, row, place, channel, inside, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
):  # fmt: skip
    """Writes the last inputs of the convolution, up to the first `count` new tokens of a sequence, to a place. This may
    be the sequence's own row: the oldest go first."""
    for i in tl.static_range(TAPS - 1):
        t = count - (TAPS - 1) + i + channel * 0  # a block: the interpreter cannot join a mask with a scalar's
        old = inputs + (row.to(tl.int64) * (TAPS - 1) + count + i) * CHANNELS + channel
        new = projected + (first + t).to(tl.int64) * WIDTH + channel
        value = tl.load(new, mask=inside & (t >= 0), other=0.0)
        value = tl.where(t >= 0, value, tl.load(old, mask=inside & (t < 0), other=0.0))
        tl.store(inputs + (place.to(tl.int64) * (TAPS - 1) + i) * CHANNELS + channel, value, mask=inside)


@triton.jit
def keep_head_inputs(
    projected, inputs, first, count, row, place, head, TIMES: tl.constexpr, HEADS: tl.constexpr, KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, KEY_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """The same for the channels of a value head, and by the first head of a group for those of its key head."""
    KEYS: tl.constexpr = HEADS // TIMES * KEY_DIM
    CHANNELS: tl.constexpr = 2 * KEYS + HEADS * VALUE_DIM
    WIDTH: tl.constexpr = CHANNELS + HEADS * VALUE_DIM
    k, v = tl.arange(0, KEY_BLOCK), tl.arange(0, VALUE_BLOCK)
    if head % TIMES == 0:
        key = head // TIMES * KEY_DIM + k
        keep_inputs(projected, inputs, first, count, row, place, key, k < KEY_DIM, WIDTH, CHANNELS, TAPS)
        keep_inputs(projected, inputs, first, count, row, place, KEYS + key, k < KEY_DIM, WIDTH, CHANNELS, TAPS)
    value = 2 * KEYS + head * VALUE_DIM + v
    keep_inputs(projected, inputs, first, count, row, place, value, v < VALUE_DIM, WIDTH, CHANNELS, TAPS)
