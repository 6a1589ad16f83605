"""Reference rotary embedding and KV write."""

from __future__ import annotations

import torch
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.reference.norm import norm
from lightllm_mp.kernels.table import HeadLayout, HeadNorms, LayerKV, Norm, Rotation


def head_squares(qkv: Tensor, layout: HeadLayout) -> Tensor:
    queries, keys = layout.heads * layout.head_dim, layout.kv_heads * layout.head_dim
    return torch.stack([part.float().square().sum(-1) for part in qkv.split((queries, keys, keys), -1)[:2]])


def rotary_kv_write(
    qkv: Tensor, rotation: Rotation, kv: LayerKV, batch: Batch, layout: HeadLayout, norms: HeadNorms | None
) -> Tensor:
    tokens = qkv.shape[0]
    heads = qkv.view(tokens, layout.heads + 2 * layout.kv_heads, layout.head_dim)
    q, k, v = heads.split((layout.heads, layout.kv_heads, layout.kv_heads), dim=1)
    if norms is not None:
        q, k = norm(q, norms.query), norm(k, norms.key)
        v = norm(v, Norm(v.new_ones(layout.head_dim), norms.key.eps)) if layout.value_norm else v
    kv_write(rotate(k, rotation, batch, layout), v, kv, batch)
    q = rotate(q, rotation, batch, layout)
    if rotation.query_scale is not None:
        q = (q.float() * rotation.query_scale[batch.rotary_at.long()][:, None, None]).to(q.dtype)
    return q.reshape(tokens, layout.heads * layout.head_dim)


def rotate(x: Tensor, rotation: Rotation, batch: Batch, layout: HeadLayout) -> Tensor:
    at = batch.rotary_at.long()
    cos, sin = rotation.cos[at].unsqueeze(1), rotation.sin[at].unsqueeze(1)
    dim = 2 * cos.shape[-1]
    turning, rest = x[..., :dim].float(), x[..., dim:]
    if layout.interleaved:
        first, second = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)
    else:
        first, second = turning.chunk(2, -1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return torch.cat((turned.to(x.dtype), rest), -1)


def kv_write(keys: Tensor, values: Tensor, kv: LayerKV, batch: Batch) -> None:
    slots = batch.slots.long()
    _store(keys, kv.keys, kv.key_scales, slots)
    if kv.values.data_ptr() != kv.keys.data_ptr():
        _store(values, kv.values, kv.value_scales, slots)


def _store(x: Tensor, pool: Tensor, scales: Tensor | None, slots: Tensor) -> None:
    if scales is None:
        pool[slots] = x.to(pool.dtype)
        return
    largest = 127.0 if pool.dtype == torch.int8 else torch.finfo(pool.dtype).max
    scale = (x.float().abs().amax(-1) / largest).to(scales.dtype)
    scaled = x.float() / scale.float().clamp(min=torch.finfo(scales.dtype).tiny).unsqueeze(-1)
    if pool.dtype == torch.int8:
        scaled = scaled.round()
    pool[slots] = scaled.clamp(-largest, largest).to(pool.dtype)
    scales[slots] = scale
