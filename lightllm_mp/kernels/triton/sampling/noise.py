"""Order-preserving keys of floats, and the sampling noise of engine/sampling/noise.py."""

from __future__ import annotations

import triton
import triton.language as tl

from lightllm_mp.kernels.triton.sampling.rules import SEED, TEMPERATURE

LOWEST = tl.constexpr(-2139095041)
"""The key of minus infinity."""
INFINITE = tl.constexpr(2139095040)
"""The key of infinity; NaN has a larger one."""
NEVER = tl.constexpr(-(1 << 31))
"""Less than every key."""


@triton.jit
def ordered(x):
    """int32 keys of float32 `x`: larger for larger numbers, one for both zeros, the largest for NaN."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(x == x, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), 0x7FFFFFFF)


@triton.jit
def value(key):
    """The float32 with this key."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def score_scale(rule):
    """One over the temperature, clamped to normal numbers: 0 times it must be 0."""
    return tl.minimum(tl.maximum(1.0 / tl.load(rule + TEMPERATURE).to(tl.float32, bitcast=True), 1e-37), 1e38)


@triton.jit
def first_largest(x, ids, there):
    """The smallest of the int32 `ids` with the largest `x`, where `there` is true."""
    key = tl.where(there, ordered(x), NEVER)
    return tl.min(tl.where(key == tl.max(key, 0), ids, 0x7FFFFFFF), 0)


@triton.jit
def noise_keys(rule, position):
    """The two uint32 keys of a position of the row whose rules are at `rule`."""
    low = tl.load(rule + SEED).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(rule + SEED + 1).to(tl.uint32, bitcast=True).to(tl.uint64)
    x = low | (high << 32)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = (x ^ (x >> 31)) + position.to(tl.uint64) * 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    return (x & 0xFFFFFFFF).to(tl.uint32), (x >> 32).to(tl.uint32)


@triton.jit
def log_exponential(ids, key0, key1):
    """The negative of Gumbel noise for int32 `ids`, float32.

    -log1p(-u) is -log(w) plus what w = 1 - u lost by rounding: exact where u is tiny, within 2 units elsewhere.
    """
    x = ids.to(tl.uint32, bitcast=True) + 0x9E3779B9
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = (x ^ (x >> 16)) + key0
    x = (x ^ (x >> 16)) * 0x7FEB352D + key1
    x = (x ^ (x >> 15)) * 0x846CA68B
    u = (x >> 1).to(tl.int32, bitcast=True).to(tl.float32) * 4.6566125955216364e-10 + 2.3283064365386963e-10
    w = 1.0 - u
    return tl.log((u - (1.0 - w)) - tl.log(w))
