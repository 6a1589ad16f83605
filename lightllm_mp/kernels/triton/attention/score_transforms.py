"""Attention scores and weights between the two matrix products: scales of 8-bit keys and values, soft cap, ALiBi."""

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

PLAIN, ONE, PAIRS = 0, 1, 2
"""How scales are read: there are none; one by one; two in a 4-byte word, which the GPU can load asynchronously, unlike
2 bytes."""


class ScoreTransforms(NamedTuple):
    """Arguments of an attention kernel beyond plain attention.

    The kernels use base-2 exponentials: factor, cap and slopes are multiplied by log2(e). With a cap the factor is
    divided by the cap instead.
    """

    key_scales: Tensor
    """Any tensor if there are no scales; likewise the next two."""
    value_scales: Tensor
    slopes: Tensor
    read: int
    """How scales are read: PLAIN, ONE or PAIRS."""
    factor: float
    """The factor on raw scores."""
    cap: float
    """The soft cap; 0: none."""
    sloped: bool
    """Whether there are slopes."""
    left: float
    """The factor to apply in the exponential, where it costs nothing."""


def extras(q: Tensor, kv: LayerKV, layout: HeadLayout) -> ScoreTransforms:
    key_scales, value_scales, read = q, q, PLAIN
    if kv.key_scales is not None and kv.value_scales is not None:
        key_scales, value_scales, read = kv.key_scales, kv.value_scales, ONE
        k_words, v_words = _words(kv.key_scales), _words(kv.value_scales)
        if k_words is not None and v_words is not None:
            key_scales, value_scales, read = k_words, v_words, PAIRS
    cap = layout.softcap * LOG2E
    factor = layout.scale / layout.softcap if layout.softcap else layout.scale * LOG2E
    slopes = _slopes(layout.alibi, q.device) if layout.alibi else q
    left = 1.0 if cap or layout.alibi else factor
    return ScoreTransforms(key_scales, value_scales, slopes, read, factor, cap, bool(layout.alibi), left)


def _words(scales: Tensor) -> Tensor | None:
    """The same memory as int32; None unless it begins and ends with a whole word."""
    count = scales.numel() + scales.numel() % 2
    left = scales.untyped_storage().nbytes() // scales.itemsize - scales.storage_offset()
    if scales.data_ptr() % 4 or scales.storage_offset() % 2 or left < count:
        return None
    return scales.as_strided((count,), (1,)).view(torch.int32)


@lru_cache(maxsize=64)
def _slopes(alibi: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 [heads], cached: a CUDA graph must not copy from the host."""
    return torch.tensor(alibi, dtype=torch.float32, device=device) * LOG2E


@triton.jit
def scales_at(scales, slot, kv_head, seen, KV_HEADS: tl.constexpr, READ: tl.constexpr):
    """float32: the scale of one head at each slot."""
    place = slot * KV_HEADS + kv_head
    if READ == 2:
        word = tl.load(scales + (place >> 1), mask=seen, other=0)
        odd = place & 1
        if KV_HEADS % 2 == 0:
            odd = kv_head & 1  # the same for every slot
        half = (word >> (16 * odd).to(tl.int32)) & 0xFFFF
        return half.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return tl.load(scales + place, mask=seen, other=0.0).to(tl.float32)


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
