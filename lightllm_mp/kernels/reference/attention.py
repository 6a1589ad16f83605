"""Reference rotary embedding, KV write and attention: plain torch, one sequence at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout


def rotary_kv_write(
    qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, batch: Batch, layout: HeadLayout
) -> Tensor:
    tokens = qkv.shape[0]
    heads = qkv.view(tokens, layout.heads + 2 * layout.kv_heads, layout.head_dim)
    q, k, v = heads.split((layout.heads, layout.kv_heads, layout.kv_heads), dim=1)
    at = batch.positions.long()
    cos, sin = cos[at].unsqueeze(1), sin[at].unsqueeze(1)
    slots = batch.slots.long()
    keys[slots] = rotate(k, cos, sin).to(keys.dtype)
    values[slots] = v.to(values.dtype)
    return rotate(q, cos, sin).reshape(tokens, layout.heads * layout.head_dim)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (i, i + half) of the first 2 * half components; cos and sin are [tokens, 1, half]."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def attention(q: Tensor, keys: Tensor, values: Tensor, batch: Batch, layout: HeadLayout) -> Tensor:
    out = torch.empty_like(q)
    starts = batch.seq_start.tolist()
    for i, (context, row) in enumerate(zip(batch.context.tolist(), batch.rows.tolist(), strict=True)):
        slots = batch.slot_table[row, :context].long()
        new = slice(starts[i], starts[i + 1])
        out[new] = _one_sequence(q[new], keys[slots], values[slots], layout)
    return out


def _one_sequence(q: Tensor, k: Tensor, v: Tensor, layout: HeadLayout) -> Tensor:
    """q [new, heads * head_dim], k and v [context, kv_heads, head_dim]; the new tokens are the last of the context."""
    new, context, group = q.shape[0], k.shape[0], layout.heads // layout.kv_heads
    wide_q = q.view(new, layout.kv_heads, group, layout.head_dim).float()
    scores = torch.einsum("nkgd,ckd->kgnc", wide_q, k.float()) * layout.scale
    query_at = torch.arange(context - new, context, device=q.device).unsqueeze(1)
    key_at = torch.arange(context, device=q.device)
    hidden = key_at > query_at
    if layout.window:
        hidden |= key_at <= query_at - layout.window
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("kgnc,ckd->nkgd", weights, v.float()).reshape(new, -1).to(q.dtype)
