"""Turns the tensors of a quantised weight, as a checkpoint stores them, into a form of `kernels/quantised`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightllm_mp.errors import ModelError
from lightllm_mp.kernels.quantised import GroupedWeight, ScaledWeight
from lightllm_mp.kernels.reference.quantised import expanded
from lightllm_mp.models.checkpoint.quant_layout import StoredWeight

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AWQ has output `AWQ_ORDER[i]` of eight in place i of a word."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The values of a 4-bit float by its lower three bits; the highest is the sign (OCP Microscaling Formats, 5.3.3)."""

Parts = Mapping[str, Any]
"""Tensors by suffix; the 8-bit values of a `scaled` weight may be a lazy slice of the file."""


def decoded(weight: StoredWeight, parts: Parts, where: str) -> ScaledWeight | GroupedWeight | Tensor:
    """The weight. Codes of 8 bits with zero points or shuffled groups, for which there are no kernels, become a plain
    tensor in float32."""
    if weight.scheme.form == "scaled":
        return _scaled(weight, parts)
    if weight.scheme.form == "nvfp4":
        return _nvfp4(weight, parts)
    grouped = _grouped(weight, parts, where)
    if weight.scheme.bits == 4:
        return grouped
    return _signed(grouped, weight.scheme.group) or expanded(grouped, torch.float32)


def _scaled(weight: StoredWeight, parts: Parts) -> ScaledWeight:
    """Every output gets scales of its own; see `ScaledWeight`."""
    n, k = weight.shape
    values, scales = (parts[part] for part in weight.parts)
    scales = scales.float()
    if weight.scheme.block is None:
        return ScaledWeight(values, scales.reshape(-1, 1).expand(n, 1).contiguous())
    rows, columns = weight.scheme.block
    return ScaledWeight(values, scales.repeat_interleave(rows, 0)[:n].contiguous(), columns if columns < k else 0)


def _nvfp4(weight: StoredWeight, parts: Parts) -> ScaledWeight:
    """The 4-bit floats as 8-bit ones, which have all their values."""
    packed, step, factor = (parts[part] for part in weight.parts)
    codes = _codes(packed, 4)
    magnitudes = torch.tensor(E2M1, device=codes.device)[(codes & 7).long()]
    values = torch.where(codes >= 8, -magnitudes, magnitudes).to(torch.float8_e4m3fn).reshape(weight.shape)
    whole = factor.float() if weight.parts[2] == ".weight_scale_2" else 1.0 / factor.float()
    return ScaledWeight(values, step.float() * whole.reshape(()), weight.scheme.group)


def _grouped(weight: StoredWeight, parts: Parts, where: str) -> GroupedWeight:
    scheme, (n, k) = weight.scheme, weight.shape
    form, bits = scheme.form, scheme.bits
    middle = 1 << (bits - 1)  # the zero point of symmetric weights, which have none in the file
    if form == "packed":
        codes = _codes(parts[".weight_packed"], bits).reshape(n, k)
        scales, zeros = parts[".weight_scale"].contiguous(), parts.get(".weight_zero_point")
        if zeros is not None:  # packed along the outputs
            zeros = _codes(zeros, bits).permute(0, 2, 1).reshape(-1, zeros.shape[1])[:n]
    else:
        codes, scales, zeros = _codes(parts[".qweight"], bits), parts[".scales"].t().contiguous(), parts.get(".qzeros")
        zeros = None if zeros is None else _codes(zeros, bits)
        if form == "gptq":
            codes = codes.permute(1, 0, 2).reshape(n, k)
        else:
            places = torch.tensor(AWQ_ORDER, device=codes.device).argsort()
            codes = codes[:, :, places].reshape(k, n).t()
            zeros = None if zeros is None else zeros[:, :, places]
        if zeros is not None:
            zeros = (zeros.reshape(-1, n).t() + scheme.zero_offset) & ((1 << bits) - 1)
    if zeros is None:
        zeros = torch.full(scales.shape, middle, dtype=torch.uint8, device=codes.device)
    return GroupedWeight(codes.contiguous(), scales, zeros.contiguous(), _group_of(weight, parts, where))


def _group_of(weight: StoredWeight, parts: Parts, where: str) -> Tensor:
    """int32 [k]: the group of each input."""
    k, groups = weight.shape[1], weight.scheme.groups(weight.shape[1])
    suffix = ".weight_g_idx" if weight.scheme.form == "packed" else ".g_idx"
    named = parts.get(suffix)
    if named is None:
        each = k if weight.scheme.group < 0 else weight.scheme.group
        return torch.arange(k, device=parts[weight.parts[0]].device, dtype=torch.int32) // each
    if named.numel() and not 0 <= int(named.min()) <= int(named.max()) < groups:
        raise ModelError(f"{where}: tensor {weight.stem}{suffix} has groups beyond {groups - 1}")
    return named.to(torch.int32)


def _signed(weight: GroupedWeight, group: int) -> ScaledWeight | None:
    """Codes of 8 bits around 128 in groups that lie side by side, as int8; None for others."""
    k = weight.codes.shape[1]
    each = k if group < 0 else group
    in_order = torch.arange(k, device=weight.group_of.device) // each
    if bool((weight.zeros != 128).any()) or not torch.equal(weight.group_of.long(), in_order):
        return None
    values = (weight.codes ^ 128).view(torch.int8)
    return replace(ScaledWeight(values, weight.scales.float()), group=0 if each >= k else each)


def _codes(packed: Tensor, bits: int) -> Tensor:
    """Whole words or bytes [a, b] -> uint8 [a, b, codes of each], lowest bits first."""
    parts = packed.contiguous().view(torch.uint8)
    if bits == 4:
        parts = torch.stack((parts & 15, parts >> 4), dim=-1)
    return parts.view(*packed.shape, -1)
