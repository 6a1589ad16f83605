"""Transforms attention scores and weights between the two matrix products: scales of 8-bit keys and values, soft cap,
ALiBi, sinks."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.table import HeadLayout, LayerKV

LOG2E = math.log2(math.e)

PLAIN, APART, TOGETHER = 0, 1, 2
"""How kernels read scales. PLAIN: there are none. APART: one by one. TOGETHER: a key's and its value's in a 4-byte
word, which takes one memory access for both and which the GPU, unlike 2 bytes, can load asynchronously."""


class ScoreTransforms(NamedTuple):
    """Arguments of an attention kernel beyond plain attention.

    The kernels use base-2 exponentials: factor, cap and slopes are multiplied by log2(e). With a cap the factor is
    divided by the cap instead.
    """

    key_scales: Tensor
    """Any tensor if there are no scales; the same holds for the next three fields."""
    value_scales: Tensor
    slopes: Tensor
    sinks: Tensor
    read: int
    """How scales are read: PLAIN, APART or TOGETHER."""
    factor: float
    """The factor on raw scores."""
    cap: float
    """The soft cap; 0: none."""
    sloped: bool
    """Whether there are slopes."""
    sunk: bool
    """Whether there are sinks."""
    left: float
    """The factor to apply in the exponential, where it is free."""


def extras(q: Tensor, kv: LayerKV, layout: HeadLayout) -> ScoreTransforms:
    key_scales, value_scales, read = q, q, PLAIN
    if kv.key_scales is not None and kv.value_scales is not None:
        key_scales, value_scales, read = kv.key_scales, kv.value_scales, APART
        if spacing(key_scales) == 2:
            key_scales = value_scales = _words(key_scales, value_scales)
            read = TOGETHER
    cap = layout.softcap * LOG2E
    factor = layout.scale / layout.softcap if layout.softcap else layout.scale * LOG2E
    slopes = _slopes(layout.alibi, q.device) if layout.alibi else q
    left = 1.0 if cap or layout.alibi else factor
    sunk = layout.sinks is not None
    sinks = q if layout.sinks is None else layout.sinks
    return ScoreTransforms(key_scales, value_scales, slopes, sinks, read, factor, cap, bool(layout.alibi), sunk, left)


def spacing(scales: Tensor | None) -> int:
    """The distance between the scales of adjacent heads: 2 if keys' and values' scales alternate, else 1."""
    return 1 if scales is None else scales.stride(1)


def _words(key_scales: Tensor, value_scales: Tensor) -> Tensor:
    """The memory of both as int32, a key's scale in the low half of each word."""
    if value_scales.data_ptr() != key_scales.data_ptr() + 2 or value_scales.stride() != key_scales.stride():
        raise ValueError("scales that are not next to one another must lie in planes of their own")
    return key_scales.as_strided((2 * key_scales.numel(),), (1,)).view(torch.int32)


@lru_cache(maxsize=64)
def _slopes(alibi: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 [heads], cached: a CUDA graph must not copy from the host."""
    return torch.tensor(alibi, dtype=torch.float32, device=device) * LOG2E


@triton.jit
def scales_at(key_scales, value_scales, slot, kv_head, seen, KV_HEADS: tl.constexpr, READ: tl.constexpr):
    """The scales of one head's key and value at each slot, float32."""
    place = slot * KV_HEADS + kv_head
    if READ == 2:
        word = tl.load(key_scales + place, mask=seen, other=0)
        return _half(word), _half(word >> 16)
    else:
        of_key = tl.load(key_scales + place, mask=seen, other=0.0).to(tl.float32)
        return of_key, tl.load(value_scales + place, mask=seen, other=0.0).to(tl.float32)


@triton.jit
def _half(word):
    """The low half of a word, a float16, as float32."""
    return (word & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def bent(scores, distance, slope, FACTOR: tl.constexpr, CAP: tl.constexpr, SLOPED: tl.constexpr):
    """Scores [queries, keys] with cap and bias. `distance` is key minus query position, `slope` [queries, 1]. With
    neither, scores stay raw: FACTOR is applied in the exponential."""
    if CAP > 0.0:
        scores = CAP * (1.0 - 2.0 / (1.0 + tl.exp2(scores * (FACTOR * 2.8853900817779268))))  # tanh; 2 * log2(e)
    if SLOPED:
        if CAP == 0.0:
            scores *= FACTOR
        scores += slope * distance.to(tl.float32)
    return scores
