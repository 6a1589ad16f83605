"""The CUDA op table: Triton for all but the projections of many tokens and the embedding, which torch does."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.table import OpTable
from lightllm_mp.kernels.triton.attention import attention
from lightllm_mp.kernels.triton.linear import linear, linear_float
from lightllm_mp.kernels.triton.rotary import rotary_kv_write
from lightllm_mp.kernels.triton.rows import add_norm, gated, norm

TYPES = (torch.float32, torch.bfloat16, torch.float16)

TABLE: OpTable = replace(
    reference.TABLE,
    name="triton",
    linear=linear,
    linear_float=linear_float,
    norm=norm,
    add_norm=add_norm,
    rotary_kv_write=rotary_kv_write,
    attention=attention,
    gated=gated,
)
