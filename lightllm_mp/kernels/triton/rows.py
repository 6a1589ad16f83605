"""Normalisation and activation, one pass over device memory each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.triton.launch import Kernel

SILU_BLOCK = 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _norm(x, x, weight, eps, add=False)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _norm(x, residual, weight, eps, add=True)


def _norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, add: bool) -> Tensor:
    out = torch.empty_like(x)
    tokens, width = x.shape
    if tokens:
        block = triton.next_power_of_2(width)
        warps = min(16, max(1, block // 512))
        _NORM.launch((tokens, 1, 1), (x, residual, weight, out), (eps,), (width, add, block), warps=warps)
    return out


@triton.jit
def _norm_kernel(x, residual, weight, out, eps, WIDTH: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    line = tl.program_id(0).to(tl.int64) * WIDTH + at
    value = tl.load(x + line, mask=inside, other=0.0)
    if ADD:
        value = (value.to(tl.float32) + tl.load(residual + line, mask=inside, other=0.0).to(tl.float32)).to(value.dtype)
        tl.store(residual + line, value, mask=inside)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide) / WIDTH + eps)
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + line, (wide * scale * factor).to(value.dtype), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    tokens, twice = gate_up.shape
    out = gate_up.new_empty((tokens, twice // 2))
    if tokens:
        grid = (tokens, triton.cdiv(twice // 2, SILU_BLOCK), 1)
        _SILU.launch(grid, (gate_up, out), (), (twice // 2, SILU_BLOCK))
    return out


@triton.jit
def _silu_kernel(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < WIDTH
    gate = tl.load(gate_up + token * 2 * WIDTH + at, mask=inside, other=0.0)
    up = tl.load(gate_up + token * 2 * WIDTH + WIDTH + at, mask=inside, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    tl.store(out + token * WIDTH + at, (wide / (1.0 + tl.exp(-wide)) * up).to(gate.dtype), mask=inside)


_NORM, _SILU = Kernel(_norm_kernel), Kernel(_silu_kernel)
