"""Reference attention: plain torch, one sequence at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout, LayerKV


def attention(q: Tensor, kv: LayerKV, batch: Batch, layout: HeadLayout) -> Tensor:
    out = q.new_empty((q.shape[0], layout.heads * layout.values))
    starts = batch.seq_start.tolist()
    for i, (context, row) in enumerate(zip(batch.context.tolist(), batch.rows.tolist(), strict=True)):
        new = slice(starts[i], starts[i + 1])
        # Behind the window of the first new token, slots may belong to other sequences.
        first = max(0, context - (new.stop - new.start) - layout.window + 1) if layout.window else 0
        slots = batch.slot_table[row, first:context].long()
        keys, values = _read(kv.keys, kv.key_scales, slots), _read(kv.values, kv.value_scales, slots)
        visible = batch.visible[new] - first if batch.visible is not None and layout.image_spans else None
        out[new] = _one_sequence(q[new], keys, values, layout, visible)
    return out


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    return seen.transpose(1, 2).flatten(2)


def _read(pool: Tensor, scales: Tensor | None, slots: Tensor) -> Tensor:
    """float32 [context, kv_heads, dim]"""
    x = pool[slots].float()
    return x if scales is None else x * scales[slots].float().unsqueeze(-1)


def _one_sequence(q: Tensor, k: Tensor, v: Tensor, layout: HeadLayout, visible: Tensor | None) -> Tensor:
    """q [new, heads * head_dim], k and v [context, kv_heads, dim]; the new tokens are the last of the context.
    `visible` counts keys from the first of k on."""
    new, context, group = q.shape[0], k.shape[0], layout.heads // layout.kv_heads
    wide_q = q.view(new, layout.kv_heads, group, layout.head_dim).float()
    scores = torch.einsum("nkgd,ckd->kgnc", wide_q, k) * layout.scale
    if layout.softcap:
        scores = layout.softcap * torch.tanh(scores / layout.softcap)
    query_at = torch.arange(context - new, context, device=q.device).unsqueeze(1)
    key_at = torch.arange(context, device=q.device)
    if layout.alibi:
        slopes = torch.tensor(layout.alibi, device=q.device).view(layout.kv_heads, group, 1, 1)
        scores = scores + slopes * (key_at - query_at)
    last = query_at if visible is None else visible.unsqueeze(1) - 1
    hidden = (key_at > last) & layout.causal
    if layout.window:
        hidden |= key_at <= query_at - layout.window
    scores = scores.masked_fill(hidden, float("-inf"))
    if layout.sinks is not None:
        sinks = layout.sinks.view(layout.kv_heads, group, 1, 1).expand(-1, -1, new, 1)
        scores = torch.cat((scores, sinks), -1)
    weights = scores.softmax(-1)[..., :context]
    return torch.einsum("kgnc,ckd->nkgd", weights, v).reshape(new, -1).to(q.dtype)
