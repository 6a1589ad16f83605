"""Reference projections and embedding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class PlainLinear(NamedTuple):
    """A plain weight and its bias."""

    weight: Tensor
    bias: Tensor | None


def prepare_linear(weight: Tensor, bias: Tensor | None) -> PlainLinear:
    return PlainLinear(weight, bias)


def linear(x: Tensor, prepared: PlainLinear) -> Tensor:
    return functional.linear(x, prepared.weight, prepared.bias)


def linear_float(x: Tensor, prepared: PlainLinear) -> Tensor:
    if x.is_cuda:
        return functional.linear(x, prepared.weight, prepared.bias).float()
    bias = None if prepared.bias is None else prepared.bias.float()
    return functional.linear(x.float(), prepared.weight.float(), bias)


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    return torch.index_select(table, 0, ids)


def prepare_heads(weight: Tensor) -> Tensor:
    return weight.transpose(1, 2).contiguous()


def linear_heads(x: Tensor, weight: Tensor) -> Tensor:
    return torch.bmm(x.transpose(0, 1), weight).transpose(0, 1)
