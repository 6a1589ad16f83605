"""Torch functions that define every op: clear rather than fast, exact in float32, on any device."""

from __future__ import annotations

from lightllm_mp.kernels.reference import attention, linear, norm
from lightllm_mp.kernels.table import OpTable

TABLE = OpTable(
    name="reference",
    exact_rows=False,
    prepare_linear=linear.prepare_linear,
    linear=linear.linear,
    linear_float=linear.linear_float,
    embedding=linear.embedding,
    rms_norm=norm.rms_norm,
    add_rms_norm=norm.add_rms_norm,
    rotary_kv_write=attention.rotary_kv_write,
    attention=attention.attention,
    silu_mul=norm.silu_mul,
)
