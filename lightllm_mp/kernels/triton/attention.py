"""Attention of a step in which sequences with one new token and chunks of prompts may share."""

from __future__ import annotations

import torch
from torch import Tensor

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout, LayerKV
from lightllm_mp.kernels.triton import decode, prefill
from lightllm_mp.kernels.triton.schedule import step_schedule
from lightllm_mp.kernels.triton.tuned import MAX_HEAD_DIM


def attention(q: Tensor, kv: LayerKV, batch: Batch, layout: HeadLayout) -> Tensor:
    """Asks the device for nothing: which kernels run follows from the shapes of the batch. Every sequence has at least
    one key, its new token. Heads beyond MAX_HEAD_DIM take the reference, which does wait for the device."""
    special = layout.softcap or layout.alibi or layout.value_dim or kv.key_scales is not None
    if special or layout.head_dim > MAX_HEAD_DIM or not batch.sequences:
        return reference.TABLE.attention(q, kv, batch, layout)
    keys, values = kv.keys, kv.values
    out = torch.empty_like(q)
    schedule = step_schedule(batch, keys)
    if batch.tokens > batch.sequences:
        prefill.attend(q, keys, values, out, batch, layout, schedule.prefill(batch, layout, q.dtype))
    if batch.tokens == batch.sequences or batch.sequences > 1:
        decode.attend(q, keys, values, out, batch, layout, schedule.decode(batch, layout, q.dtype))
    return out
