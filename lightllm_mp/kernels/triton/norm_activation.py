"""Normalisation and activation: each is one pass over device memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.table import Norm
from lightllm_mp.kernels.triton.activations import ACTIVATIONS, activated
from lightllm_mp.kernels.triton.activations import gated as gated_block
from lightllm_mp.kernels.triton.block_sizes import next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel, wait_for_inputs

ACTIVATION_BLOCK = 1024


def norm(x: Tensor, by: Norm) -> Tensor:
    return _norm(x, x, by, add=False)


def add_norm(x: Tensor, residual: Tensor, by: Norm) -> Tensor:
    return _norm(x, residual, by, add=True)


def _norm(x: Tensor, residual: Tensor, by: Norm, *, add: bool) -> Tensor:
    out = torch.empty_like(x)
    tokens, width = x.shape
    if tokens:
        block = next_power_of_2(width)
        warps = min(16, max(1, block // 512))
        bias = by.weight if by.bias is None else by.bias
        _norm_kernel.launch(
            (tokens, 1, 1),
            _norm_kernel.arguments(
                x=x,
                residual=residual,
                weight=by.weight,
                bias=bias,
                out=out,
                eps=by.eps,
                WIDTH=width,
                ADD=add,
                CENTRED=by.kind == "layer",
                BIASED=by.bias is not None,
                BLOCK=block,
            ),
            warps=warps,
        )
    return out


@kernel(numbers=["eps"], waits=True)
def _norm_kernel(
    x,
    residual,
    weight,
    bias,
    out,
    eps,
    WIDTH: tl.constexpr,
    ADD: tl.constexpr,
    CENTRED: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    line = tl.program_id(0).to(tl.int64) * WIDTH + at
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    wait_for_inputs(EARLY)
    value = tl.load(x + line, mask=inside, other=0.0)
    if ADD:
        value = (value.to(tl.float32) + tl.load(residual + line, mask=inside, other=0.0).to(tl.float32)).to(value.dtype)
        tl.store(residual + line, value, mask=inside)
    wide = value.to(tl.float32)
    if CENTRED:
        wide = tl.where(inside, wide - tl.sum(wide) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(wide * wide) / WIDTH + eps)
    result = wide * scale * factor
    if BIASED:
        result += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + line, result.to(value.dtype), mask=inside)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    tokens, twice = gate_up.shape
    return _activation(gate_up, gate_up.new_empty((tokens, twice // 2)), activation)


def activate(x: Tensor, activation: str) -> Tensor:
    return _activation(x, torch.empty_like(x), activation)


def _activation(x: Tensor, out: Tensor, activation: str) -> Tensor:
    tokens, width = out.shape
    if tokens:
        _activation_kernel.launch(
            (tokens, triton.cdiv(width, ACTIVATION_BLOCK), 1),
            _activation_kernel.arguments(
                x=x,
                out=out,
                WIDTH=width,
                GATED=x.shape[1] != width,
                KIND=ACTIVATIONS[activation],
                BLOCK=ACTIVATION_BLOCK,
            ),
        )
    return out


@kernel(waits=True)
def _activation_kernel(
    x,
    out,
    WIDTH: tl.constexpr,
    GATED: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    wait_for_inputs(EARLY)
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < WIDTH
    line = x + token * (2 * WIDTH if GATED else WIDTH)
    value = tl.load(line + at, mask=inside, other=0.0)
    value = value.to(tl.float32)
    if GATED:
        result = gated_block(value, tl.load(line + WIDTH + at, mask=inside, other=0.0).to(tl.float32), KIND)
    else:
        result = activated(value, KIND)
    tl.store(out + token * WIDTH + at, result.to(out.dtype.element_ty), mask=inside)


def sigmoid_gated(x: Tensor, gate: Tensor) -> Tensor:
    tokens, width = x.shape
    out = torch.empty_like(x)
    if tokens:
        _gate_kernel.launch(
            (tokens, triton.cdiv(width, ACTIVATION_BLOCK), 1),
            _gate_kernel.arguments(
                x=x,
                gate=gate,
                out=out,
                WIDTH=width,
                SINGLE=gate.shape[1] == 1,
                BLOCK=min(ACTIVATION_BLOCK, next_power_of_2(width)),
            ),
        )
    return out


@kernel(waits=True)
def _gate_kernel(
    x, gate, out, WIDTH: tl.constexpr, SINGLE: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    wait_for_inputs(EARLY)
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, place = at < WIDTH, token * WIDTH + at
    if SINGLE:
        by = tl.load(gate + token).to(tl.float32)
    else:
        by = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + place, mask=inside, other=0.0)
    tl.store(out + place, (value.to(tl.float32) / (1.0 + tl.exp(-by))).to(value.dtype), mask=inside)
