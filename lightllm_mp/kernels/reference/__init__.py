"""The definition of every op in plain torch: clear rather than fast, exact in float32, on any device."""

from __future__ import annotations

from lightllm_mp.kernels.reference import attention, gated_delta, linear, moe, norm, quantised, rotary
from lightllm_mp.kernels.table import OpTable

TABLE = OpTable(
    name="reference",
    exact_rows=False,
    prepare_linear=linear.prepare_linear,
    prepare_quantised=quantised.prepare_quantised,
    linear=linear.linear,
    linear_float=linear.linear_float,
    embedding=linear.embedding,
    norm=norm.norm,
    add_norm=norm.add_norm,
    head_squares=rotary.head_squares,
    rotary_kv_write=rotary.rotary_kv_write,
    attention=attention.attention,
    full_attention=attention.full_attention,
    prepare_heads=linear.prepare_heads,
    linear_heads=linear.linear_heads,
    rotate=rotary.rotate,
    kv_write=rotary.kv_write,
    gated_delta=gated_delta.gated_delta,
    sigmoid_gated=norm.sigmoid_gated,
    gated=norm.gated,
    activate=norm.activate,
    route=moe.route,
    prepare_experts=moe.prepare_experts,
    experts=moe.experts,
)
