"""Quantised weights in the C extension: they stay quantised and are multiplied by 16-bit activations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from lightllm_mp.kernels.cpu.runtime import native
from lightllm_mp.kernels.cpu.values import TYPES
from lightllm_mp.kernels.quantised import BlockRows, BlockWeight, GroupedWeight, QuantisedWeight, ScaledWeight

INPUTS = 32
"""Inputs of a block of the packed form (native.h)."""
MOST_SCALE = 128.0
"""The bound of scales of float8 weights: they must be smaller (native.h)."""
ROWS_INT8, GROUPS_INT4, ROWS_FLOAT8 = 12, 13, 100
"""Numbers of the formats beside ggml's (native.h)."""

_c = native()

BLOCK_TYPES = frozenset(
    kind.value for kind in GGMLQuantizationType if _c is not None and _c.ggml_format(kind.value) >= 0
)
"""ggml's types that have a packed form."""


class QuantisedLinear(NamedTuple):
    """A weight in parts, each with its own packed format."""

    packed: tuple[Tensor, ...]
    bias: Tensor | None
    parts: Tensor
    """int64 [parts, 5]: `struct quantised` of native.h."""
    n: int
    k: int
    pieces: int
    """Number of `parts`."""
    address: int
    """Address of `parts`."""
    order: Tensor | None
    """int64 [k]: the order in which the weight takes its inputs; None: unchanged."""


def prepare_quantised(weight: QuantisedWeight, bias: Tensor | None) -> QuantisedLinear | None:
    """The packed weight; None for forms that cannot be packed: integers in groups that are not a multiple of 32 inputs,
    8-bit floats with a NaN, very large scales, or groups that are not a multiple of 4 inputs."""
    bias = None if bias is None else bias.float().contiguous()
    if isinstance(weight, BlockWeight):
        return prepare_blocks(weight, bias)
    if isinstance(weight, GroupedWeight):
        return _prepared_groups(weight, bias)
    return _prepared_rows(weight, bias) if weight.values.dtype == torch.int8 else _prepared_float8(weight, bias)


def prepare_blocks(weight: BlockWeight, bias: Tensor | None) -> QuantisedLinear:
    return _joined([_packed_blocks(part) for part in weight.parts], bias, weight.parts[0].columns)


class _Part(NamedTuple):
    packed: Tensor
    n: int
    format: int
    per: int


def _packed_blocks(part: BlockRows) -> _Part:
    rows, k, n = part.rows.contiguous(), part.columns, part.rows.shape[0]
    form = _c.ggml_format(part.type.value)
    per = _c.blocks_per_section(form)
    packed = torch.empty(_c.quantised_bytes(form, per, n, k), dtype=torch.uint8)
    _c.pack_ggml(part.type.value, rows.data_ptr(), rows.shape[1], packed.data_ptr(), n, k)
    return _Part(packed, n, form, per)


def _prepared_rows(weight: ScaledWeight, bias: Tensor | None) -> QuantisedLinear | None:
    if weight.group % INPUTS:
        return None
    n, k = weight.values.shape
    values, scales, per = (
        weight.values.contiguous(),
        weight.scales.float().contiguous(),
        -(-(weight.group or k) // INPUTS),
    )
    packed = torch.empty(_c.quantised_bytes(ROWS_INT8, per, n, k), dtype=torch.uint8)
    _c.pack_int8(values.data_ptr(), scales.data_ptr(), packed.data_ptr(), n, k, per)
    return _joined([_Part(packed, n, ROWS_INT8, per)], bias, k)


def _prepared_float8(weight: ScaledWeight, bias: Tensor | None) -> QuantisedLinear | None:
    n, k = weight.values.shape
    group = weight.group or -(-k // INPUTS) * INPUTS
    values, scales = weight.values.contiguous(), weight.scales.float().contiguous()
    if group % 4 or scales.max() >= MOST_SCALE or (values.view(torch.int8) & 127 == 127).any():
        return None
    packed = torch.empty(_c.float8_bytes(n, k, group), dtype=torch.uint8)
    _c.pack_float8(values.data_ptr(), scales.data_ptr(), packed.data_ptr(), n, k, group)
    return _joined([_Part(packed, n, ROWS_FLOAT8, group)], bias, k)


def _prepared_groups(weight: GroupedWeight, bias: Tensor | None) -> QuantisedLinear | None:
    n, k = weight.codes.shape
    groups = weight.scales.shape[1]
    group_of, order = torch.sort(weight.group_of, stable=True)
    if k % groups or k // groups % INPUTS or not torch.equal(group_of, torch.arange(k).int() // (k // groups)):
        return None
    in_order = torch.equal(order, torch.arange(k))
    codes = (weight.codes if in_order else weight.codes[:, order]).contiguous()
    scales, zeros, per = weight.scales.float().contiguous(), weight.zeros.contiguous(), k // groups // INPUTS
    packed = torch.empty(_c.quantised_bytes(GROUPS_INT4, per, n, k), dtype=torch.uint8)
    _c.pack_grouped(codes.data_ptr(), scales.data_ptr(), zeros.data_ptr(), packed.data_ptr(), n, k, per)
    return _joined([_Part(packed, n, GROUPS_INT4, per)], bias, k, None if in_order else order)


def _joined(parts: list[_Part], bias: Tensor | None, k: int, order: Tensor | None = None) -> QuantisedLinear:
    entries, row = [], 0
    for part in parts:
        own_bias = 0 if bias is None else bias[row:].data_ptr()
        entries.append((part.packed.data_ptr(), own_bias, part.n, part.format, part.per))
        row += part.n
    table = torch.tensor(entries)
    return QuantisedLinear(
        tuple(part.packed for part in parts), bias, table, row, k, len(parts), table.data_ptr(), order
    )


def multiplied(x: Tensor, w: QuantisedLinear, dtype: torch.dtype) -> Tensor:
    """x [m, k] @ weight.T + bias: [m, n] of `dtype`. Products are integer products, for float8 weights float products.
    Rows are summed independently."""
    if w.order is not None:
        x = x.index_select(1, w.order)
    m = x.shape[0]
    out = torch.empty((m, w.n), dtype=dtype)
    _c.quantised(x.data_ptr(), w.address, w.pieces, out.data_ptr(), m, w.k, TYPES[x.dtype], TYPES[dtype])
    return out


def expanded_rows(ids: Tensor, w: QuantisedLinear, dtype: torch.dtype) -> Tensor:
    """Rows `ids` [count] of a weight of ggml blocks, dequantised: [count, k] of `dtype`."""
    assert w.order is None
    ids = ids.long().contiguous()
    out = torch.empty((ids.shape[0], w.k), dtype=dtype)
    _c.expand_rows(w.address, w.k, ids.data_ptr(), ids.shape[0], out.data_ptr(), TYPES[dtype])
    return out
