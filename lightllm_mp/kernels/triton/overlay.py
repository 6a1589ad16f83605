"""The CUDA op table: Triton kernels, except for the embedding and projections of many tokens, which torch does."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.table import OpTable
from lightllm_mp.kernels.triton.attention.attention import attention
from lightllm_mp.kernels.triton.attention.kv_write import kv_write
from lightllm_mp.kernels.triton.attention.rotary import rotate
from lightllm_mp.kernels.triton.attention.rotary_kv_write import head_squares, rotary_kv_write
from lightllm_mp.kernels.triton.delta.gated_delta import gated_delta
from lightllm_mp.kernels.triton.linear.linear import linear, linear_float, prepare_linear
from lightllm_mp.kernels.triton.linear.quantised import prepare_quantised
from lightllm_mp.kernels.triton.moe.moe import BLOCK_TYPES, experts, prepare_experts
from lightllm_mp.kernels.triton.moe.routing import route
from lightllm_mp.kernels.triton.norm_activation import activate, add_norm, gated, norm, sigmoid_gated

TYPES = (torch.float32, torch.bfloat16, torch.float16)

TABLE: OpTable = replace(
    reference.TABLE,
    name="triton",
    prepare_linear=prepare_linear,
    prepare_quantised=prepare_quantised,
    linear=linear,
    linear_float=linear_float,
    norm=norm,
    add_norm=add_norm,
    head_squares=head_squares,
    rotary_kv_write=rotary_kv_write,
    attention=attention,
    rotate=rotate,
    kv_write=kv_write,
    gated_delta=gated_delta,
    sigmoid_gated=sigmoid_gated,
    gated=gated,
    activate=activate,
    route=route,
    prepare_experts=prepare_experts,
    experts=experts,
    expert_block_types=BLOCK_TYPES,
)
