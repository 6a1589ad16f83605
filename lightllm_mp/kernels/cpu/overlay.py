"""The CPU op table over the C extension. Float32 and bfloat16, heads of a multiple of 16 up to 256."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.cpu.runtime import native
from lightllm_mp.kernels.table import HeadLayout, HeadNorms, LayerKV, Norm, OpTable, Rotation

TYPES = {torch.float32: 0, torch.bfloat16: 1}
MAX_HEAD_DIM = 256
MAX_GROUP = 32

_c = native()


class PackedLinear(NamedTuple):
    """A weight in the extension's panel order (see native.h), and its bias in float32."""

    packed: Tensor
    bias: Tensor | None
    n: int
    k: int
    address: int
    bias_address: int


def table() -> OpTable | None:
    """The overlay, or None where the extension was not built."""
    if _c is None:
        return None
    return replace(
        reference.TABLE,
        name="cpu",
        exact_rows=True,
        prepare_linear=prepare_linear,
        linear=linear,
        linear_float=linear_float,
        norm=norm,
        add_norm=add_norm,
        rotary_kv_write=rotary_kv_write,
        attention=attention,
        gated=gated,
    )


def set_threads(count: int) -> None:
    """How many threads the extension uses, the caller's included."""
    _c.set_threads(count)


def prepare_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    n, k = weight.shape
    kind = TYPES[weight.dtype]
    weight = weight.contiguous()
    packed = torch.empty(_c.packed_bytes(n, k, kind), dtype=torch.uint8)
    _c.pack(weight.data_ptr(), packed.data_ptr(), n, k, kind)
    bias = None if bias is None else bias.float().contiguous()
    return PackedLinear(packed, bias, n, k, packed.data_ptr(), 0 if bias is None else bias.data_ptr())


def linear(x: Tensor, w: PackedLinear) -> Tensor:
    m = x.shape[0]
    out = torch.empty((m, w.n), dtype=x.dtype)
    kind = TYPES[x.dtype]
    _c.gemm(x.data_ptr(), w.address, w.bias_address, out.data_ptr(), m, w.n, w.k, kind, kind)
    return out


def linear_float(x: Tensor, w: PackedLinear) -> Tensor:
    m = x.shape[0]
    x = x.contiguous()
    out = torch.empty((m, w.n), dtype=torch.float32)
    _c.gemm(x.data_ptr(), w.address, w.bias_address, out.data_ptr(), m, w.n, w.k, TYPES[x.dtype], 0)
    return out


def norm(x: Tensor, by: Norm) -> Tensor:
    if not _plain(by, x):
        return reference.TABLE.norm(x, by)
    out = torch.empty_like(x)
    m, n = x.shape
    _c.norm(0, x.data_ptr(), by.weight.data_ptr(), out.data_ptr(), m, n, float_bits(by.eps), TYPES[x.dtype])
    return out


def add_norm(x: Tensor, residual: Tensor, by: Norm) -> Tensor:
    if not _plain(by, x):
        return reference.TABLE.add_norm(x, residual, by)
    out = torch.empty_like(x)
    m, n = x.shape
    weight, eps, kind = by.weight.data_ptr(), float_bits(by.eps), TYPES[x.dtype]
    _c.norm(x.data_ptr(), residual.data_ptr(), weight, out.data_ptr(), m, n, eps, kind)
    return out


def _plain(by: Norm, x: Tensor) -> bool:
    return by.kind == "rms" and by.bias is None and by.weight.dtype == x.dtype


def gated(gate_up: Tensor, activation: str) -> Tensor:
    if activation != "silu":
        return reference.TABLE.gated(gate_up, activation)
    m, twice = gate_up.shape
    out = torch.empty((m, twice // 2), dtype=gate_up.dtype)
    _c.silu(gate_up.data_ptr(), out.data_ptr(), m, twice // 2, TYPES[gate_up.dtype])
    return out


def rotary_kv_write(
    qkv: Tensor, rotation: Rotation, kv: LayerKV, batch: Batch, layout: HeadLayout, norms: HeadNorms | None
) -> Tensor:
    if norms is not None or rotation.query_scale is not None or kv.key_scales is not None or layout.interleaved:
        return reference.TABLE.rotary_kv_write(qkv, rotation, kv, batch, layout, norms)
    m = qkv.shape[0]
    q = torch.empty((m, layout.heads * layout.head_dim), dtype=qkv.dtype)
    _c.rotary(
        qkv.data_ptr(),
        q.data_ptr(),
        kv.keys.data_ptr(),
        kv.values.data_ptr(),
        rotation.cos.data_ptr(),
        rotation.sin.data_ptr(),
        batch.rotary_at.data_ptr(),
        batch.slots.data_ptr(),
        m,
        rotation.cos.shape[1],
        layout.heads,
        layout.kv_heads,
        layout.head_dim,
        TYPES[qkv.dtype],
    )
    return q


def attention(q: Tensor, kv: LayerKV, batch: Batch, layout: HeadLayout) -> Tensor:
    if kv.key_scales is not None or not _attends(layout):
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
        batch.context.shape[0],
        table.stride(0),
        batch.max_query,
        layout.window,
        float_bits(layout.scale),
        layout.heads,
        layout.kv_heads,
        layout.head_dim,
        TYPES[q.dtype],
    )
    return out


def _attends(layout: HeadLayout) -> bool:
    fits = layout.head_dim % 16 == 0 and layout.head_dim <= MAX_HEAD_DIM
    plain = not (layout.softcap or layout.alibi or layout.value_dim)
    return fits and plain and layout.heads // layout.kv_heads <= MAX_GROUP


def float_bits(value: float) -> int:
    """A float32 as its bit pattern: the extension takes integers only."""
    bits = _FLOAT_BITS.get(value)
    if bits is None:
        bits = _FLOAT_BITS[value] = struct.unpack("<I", struct.pack("<f", value))[0]
    return bits


_FLOAT_BITS: dict[float, int] = {}
