"""The CPU op table of the C extension, for float32 and bfloat16, and head dimensions that are multiples of 16 up to
576."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.cpu.attention import MAX_HEAD_DIM, attention, full_attention, scale_addresses
from lightllm_mp.kernels.cpu.delta import gated_delta
from lightllm_mp.kernels.cpu.experts import experts, prepare_experts, route
from lightllm_mp.kernels.cpu.quantised import BLOCK_TYPES, QuantisedLinear, expanded_rows, multiplied, prepare_quantised
from lightllm_mp.kernels.cpu.runtime import native
from lightllm_mp.kernels.cpu.values import CURVES, KV_TYPES, TYPES, float_bits
from lightllm_mp.kernels.quantised import QuantisedWeight
from lightllm_mp.kernels.reference.quantised import expanded
from lightllm_mp.kernels.table import HeadLayout, HeadNorms, LayerKV, Norm, OpTable, Rotation

_c = native()


class PackedLinear(NamedTuple):
    """A weight in the extension's panel order (see native.h), and its bias in float32."""

    packed: Tensor
    bias: Tensor | None
    n: int
    k: int
    address: int
    bias_address: int


class PackedHeads(NamedTuple):
    """A weight for each head, in the extension's panel order."""

    packed: Tensor
    """uint8 [heads, bytes]"""
    heads: int
    n: int
    k: int


def table() -> OpTable | None:
    """The op table, or None if the extension was not built."""
    if _c is None:
        return None
    return replace(
        reference.TABLE,
        name="cpu",
        exact_rows=True,
        prepare_linear=prepare_linear,
        prepare_quantised=prepare_projection,
        linear=linear,
        linear_float=linear_float,
        embedding=embedding,
        norm=norm,
        add_norm=add_norm,
        head_squares=head_squares,
        rotary_kv_write=rotary_kv_write,
        attention=attention,
        full_attention=full_attention,
        prepare_heads=prepare_heads,
        linear_heads=linear_heads,
        gated_delta=gated_delta,
        sigmoid_gated=sigmoid_gated,
        gated=gated,
        activate=activate,
        route=route,
        prepare_experts=prepare_experts,
        experts=experts,
        block_types=BLOCK_TYPES,
    )


def set_threads(count: int) -> None:
    """Set the number of threads of the extension, including the caller."""
    _c.set_threads(count)


def prepare_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear:
    n, k = weight.shape
    kind = TYPES[weight.dtype]
    weight = weight.contiguous()
    packed = torch.empty(_c.packed_bytes(n, k, kind), dtype=torch.uint8)
    _c.pack(weight.data_ptr(), packed.data_ptr(), n, k, kind)
    bias = None if bias is None else bias.float().contiguous()
    return PackedLinear(packed, bias, n, k, packed.data_ptr(), 0 if bias is None else bias.data_ptr())


def prepare_projection(
    weight: QuantisedWeight, bias: Tensor | None, dtype: torch.dtype
) -> PackedLinear | QuantisedLinear:
    """In bfloat16 the weight stays quantised, for products with 16-bit activations. In float32, which users choose for
    exactness, the weight is expanded."""
    packed = prepare_quantised(weight, bias) if dtype == torch.bfloat16 else None
    return packed or prepare_linear(expanded(weight, dtype), bias)


def linear(x: Tensor, w: PackedLinear | QuantisedLinear) -> Tensor:
    if isinstance(w, QuantisedLinear):
        return multiplied(x, w, x.dtype)
    m = x.shape[0]
    out = torch.empty((m, w.n), dtype=x.dtype)
    kind = TYPES[x.dtype]
    _c.gemm(x.data_ptr(), w.address, w.bias_address, out.data_ptr(), m, w.n, w.k, kind, kind)
    return out


def linear_float(x: Tensor, w: PackedLinear | QuantisedLinear) -> Tensor:
    x = x.contiguous()
    if isinstance(w, QuantisedLinear):
        return multiplied(x, w, torch.float32)
    m = x.shape[0]
    out = torch.empty((m, w.n), dtype=torch.float32)
    _c.gemm(x.data_ptr(), w.address, w.bias_address, out.data_ptr(), m, w.n, w.k, TYPES[x.dtype], 0)
    return out


def embedding(ids: Tensor, table: Tensor | QuantisedLinear) -> Tensor:
    if isinstance(table, QuantisedLinear):
        return expanded_rows(ids, table, torch.bfloat16)
    return torch.index_select(table, 0, ids)


def norm(x: Tensor, by: Norm) -> Tensor:
    return _norm(0, x, by)


def add_norm(x: Tensor, residual: Tensor, by: Norm) -> Tensor:
    return _norm(x.data_ptr(), residual, by)


def _norm(added: int, residual: Tensor, by: Norm) -> Tensor:
    """residual [..., n]. A weight with several rows (one per head) applies to the rows of `residual` in turn. With
    `mean_squares` a row is a token with all its heads."""
    out = torch.empty_like(residual)
    weight, bias = by.weight, by.bias
    n = residual.shape[-1]
    if weight.dtype not in (residual.dtype, torch.float32) or (bias is not None and bias.dtype != weight.dtype):
        weight, bias = weight.float(), None if bias is None else bias.float()
    _c.norm(
        added,
        residual.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if by.mean_squares is None else by.mean_squares.data_ptr(),
        out.data_ptr(),
        residual.numel() // n,
        n,
        weight.numel() // n,
        float_bits(by.eps),
        by.kind == "layer",
        TYPES[residual.dtype],
        TYPES[weight.dtype],
    )
    return out


def gated(gate_up: Tensor, activation: str) -> Tensor:
    m, twice = gate_up.shape
    out = torch.empty((m, twice // 2), dtype=gate_up.dtype)
    kind, curve = TYPES[gate_up.dtype], CURVES[activation]
    _c.activation(gate_up.data_ptr(), out.data_ptr(), m, twice // 2, True, curve, kind)
    return out


def activate(x: Tensor, activation: str) -> Tensor:
    out = torch.empty_like(x)
    _c.activation(x.data_ptr(), out.data_ptr(), *x.shape, False, CURVES[activation], TYPES[x.dtype])
    return out


def sigmoid_gated(x: Tensor, gate: Tensor) -> Tensor:
    out, x, gate = torch.empty_like(x), x.contiguous(), gate.contiguous()
    single, kinds = gate.shape[1] == 1, (TYPES[x.dtype], TYPES[gate.dtype])
    _c.sigmoid_gate(x.data_ptr(), gate.data_ptr(), out.data_ptr(), *x.shape, single, *kinds)
    return out


def head_squares(qkv: Tensor, layout: HeadLayout) -> Tensor:
    m, width = qkv.shape
    queries, keys = layout.heads * layout.head_dim, layout.kv_heads * layout.head_dim
    out = torch.empty((2, m), dtype=torch.float32)
    for row, first, count in ((out[0], 0, queries), (out[1], queries, keys)):
        _c.squares(qkv.data_ptr(), row.data_ptr(), m, width, first, count, TYPES[qkv.dtype])
    return out


def rotary_kv_write(
    qkv: Tensor, rotation: Rotation, kv: LayerKV, batch: Batch, layout: HeadLayout, norms: HeadNorms | None
) -> Tensor:
    if layout.interleaved or layout.head_dim > MAX_HEAD_DIM:
        return reference.TABLE.rotary_kv_write(qkv, rotation, kv, batch, layout, norms)
    m = qkv.shape[0]
    if norms is not None:
        _normalise_heads(qkv, layout, norms)
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
        KV_TYPES[kv.keys.dtype],
        *scale_addresses(kv),
    )
    if rotation.query_scale is not None:
        q.mul_(rotation.query_scale.index_select(0, batch.rotary_at).unsqueeze(1))
    return q


def _normalise_heads(qkv: Tensor, layout: HeadLayout, norms: HeadNorms) -> None:
    first, parts = 0, [(layout.heads, norms.query), (layout.kv_heads, norms.key)]
    if layout.value_norm:
        parts.append((layout.kv_heads, Norm(_ones(layout.head_dim, qkv.dtype), norms.key.eps)))
    for count, by in parts:
        part = qkv[:, first : first + count * layout.head_dim]
        first += part.shape[1]
        if by.mean_squares is not None:
            part.copy_(norm(part.contiguous(), by))
        else:
            heads = part.unflatten(1, (count, layout.head_dim))
            heads.copy_(norm(heads.contiguous(), by))


@lru_cache(maxsize=8)
def _ones(count: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(count, dtype=dtype)


def prepare_heads(weight: Tensor) -> PackedHeads:
    heads, n, k = weight.shape
    packed = torch.stack([prepare_linear(head, None).packed for head in weight])
    return PackedHeads(packed, heads, n, k)


def linear_heads(x: Tensor, w: PackedHeads) -> Tensor:
    """Multiplies the rows of each head separately, so the rows of a head are stored together."""
    tokens = x.shape[0]
    x, out = x.transpose(0, 1).contiguous(), torch.empty((w.heads, tokens, w.n), dtype=x.dtype)
    _c.gemm_heads(x.data_ptr(), w.packed.data_ptr(), out.data_ptr(), w.heads, tokens, w.n, w.k, TYPES[x.dtype])
    return out.transpose(0, 1)
