"""Attention of the C extension, over the KV pool and within whole sequences."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.cpu.runtime import native
from lightllm_mp.kernels.cpu.values import KV_TYPES, TYPES, float_bits, floats
from lightllm_mp.kernels.table import HeadLayout, LayerKV

MAX_HEAD_DIM = 576
"""The most components of a head, as in native.h: those of a key in DeepSeek-V3's latent attention."""
MAX_GROUP = 32

_c = native()


def attention(q: Tensor, kv: LayerKV, batch: Batch, layout: HeadLayout) -> Tensor:
    if _attends_latents(kv, layout):
        return _latent_attention(q, kv, batch, layout)
    if not _attends(layout):
        return reference.TABLE.attention(q, kv, batch, layout)
    out = torch.empty_like(q)
    table = batch.slot_table
    _c.attention(
        q.data_ptr(),
        kv.keys.data_ptr(),
        kv.values.data_ptr(),
        out.data_ptr(),
        batch.seq_start.data_ptr(),
        batch.context.data_ptr(),
        batch.rows.data_ptr(),
        table.data_ptr(),
        floats(layout.alibi).data_ptr() if layout.alibi else 0,
        batch.context.shape[0],
        table.stride(0),
        batch.max_query,
        layout.window,
        float_bits(layout.scale),
        float_bits(layout.softcap),
        layout.heads,
        layout.kv_heads,
        layout.head_dim,
        TYPES[q.dtype],
        KV_TYPES[kv.keys.dtype],
        *scale_addresses(kv),
        layout.heads * layout.head_dim,
        layout.kv_heads * layout.head_dim,
        not layout.causal,
        0 if layout.sinks is None else layout.sinks.data_ptr(),
        batch.visible.data_ptr() if batch.visible is not None and layout.image_spans else 0,
    )
    return out


def _latent_attention(q: Tensor, kv: LayerKV, batch: Batch, layout: HeadLayout) -> Tensor:
    """Attention of all query heads to the same keys, whose first components are the values. A task takes as many heads
    as fit."""
    out = torch.empty((q.shape[0], layout.heads * layout.value_dim), dtype=q.dtype)
    parts = next(n for n in range(1, layout.heads + 1) if layout.heads % n == 0 and layout.heads // n <= MAX_GROUP)
    _c.latent_attention(
        q.data_ptr(),
        kv.keys.data_ptr(),
        out.data_ptr(),
        batch.seq_start.data_ptr(),
        batch.context.data_ptr(),
        batch.rows.data_ptr(),
        batch.slot_table.data_ptr(),
        batch.context.shape[0],
        batch.slot_table.stride(0),
        batch.max_query,
        float_bits(layout.scale),
        layout.heads,
        parts,
        layout.head_dim,
        layout.value_dim,
        TYPES[q.dtype],
    )
    return out


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    sequences, queries, heads, dim = q.shape
    if dim > MAX_HEAD_DIM:
        return reference.TABLE.full_attention(q, k, v)
    if dim % 16:  # pad with zeros, which do not change a score
        q, k, v = (functional.pad(x, (0, -dim % 16)) for x in (q, k, v))
    q, k, v = _dense_rows(q), _dense_rows(k), _dense_rows(v)
    if k.stride(1) != v.stride(1):
        k, v = k.contiguous(), v.contiguous()
    out = torch.empty(q.shape, dtype=q.dtype)
    starts, context, rows, slots = _sequences(sequences, queries, k.shape[1])
    _c.attention(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        starts.data_ptr(),
        context.data_ptr(),
        rows.data_ptr(),
        slots.data_ptr(),
        0,
        sequences,
        k.shape[1],
        queries,
        0,
        float_bits(dim**-0.5),
        float_bits(0.0),
        heads,
        heads,
        q.shape[3],
        TYPES[q.dtype],
        TYPES[q.dtype],
        0,
        0,
        q.stride(1),
        k.stride(1),
        True,
        0,
        0,
    )
    return out[..., :dim].flatten(2)


def _dense_rows(x: Tensor) -> Tensor:
    """x [sequences, rows, heads, dim] with adjacent heads and one stride for all rows; copied if necessary."""
    dense = x.stride(3) == 1 and x.stride(2) == x.shape[3] and x.stride(0) == x.shape[1] * x.stride(1)
    return x if dense else x.contiguous()


@lru_cache(maxsize=64)
def _sequences(count: int, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The inputs of the attention kernel for `count` consecutive sequences: starts, contexts, rows and slots."""
    rows = torch.arange(count + 1, dtype=torch.int32)
    return rows * queries, torch.full((count,), keys, dtype=torch.int32), rows, torch.arange(count * keys).int()


def scale_addresses(kv: LayerKV) -> tuple[int, int]:
    if kv.key_scales is None or kv.value_scales is None:
        return 0, 0
    return kv.key_scales.data_ptr(), kv.value_scales.data_ptr()


def _attends(layout: HeadLayout) -> bool:
    fits = layout.head_dim % 16 == 0 and layout.head_dim <= MAX_HEAD_DIM
    return fits and not layout.value_dim and layout.heads // layout.kv_heads <= MAX_GROUP


def _attends_latents(kv: LayerKV, layout: HeadLayout) -> bool:
    """Latent attention: one key-value head, whose values are the first components of its keys."""
    shared = layout.kv_heads == 1 and kv.values.data_ptr() == kv.keys.data_ptr() and kv.key_scales is None
    plain = layout.causal and not (layout.window or layout.softcap or layout.alibi)
    return shared and plain and bool(layout.value_dim) and attends_latents(layout.head_dim, layout.value_dim)


def attends_latents(key_dim: int, value_dim: int) -> bool:
    """Whether the extension has latent attention for keys and values of these numbers of components."""
    return key_dim <= MAX_HEAD_DIM and not (key_dim % 16 or value_dim % 16)
