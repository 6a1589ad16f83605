"""The weights of all experts in the form that kernels read: plain, 8 bits with scales by groups of inputs, or MXFP4."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightllm_mp.kernels.reference.quantised import expanded
from lightllm_mp.kernels.table import ExpertWeights
from lightllm_mp.kernels.triton.block_sizes import converts_fp8
from lightllm_mp.kernels.triton.linear.fp8 import GROUP
from lightllm_mp.kernels.triton.linear.quantised import shared_outputs
from lightllm_mp.kernels.triton.moe.mxfp4 import Mxfp4Experts, packed_experts

LEAST_GROUP, LARGEST_GROUP = 16, 128
"""The fewest and most inputs that share a scale in a kernel, powers of two: those of the smallest matrix instruction,
and those that a program holds at a time."""


class ExpertMatrix(NamedTuple):
    """[experts, n, k]"""

    values: Tensor
    """In the dtype of activations, or in 8 bits."""
    scales: Tensor | None = None
    """float32 [experts, groups, n]"""
    group: int = 0
    """Inputs that share a scale."""
    scale_outputs: int = 1
    """The size of blocks of adjacent outputs that share their scales."""

    @property
    def in_fp8_blocks(self) -> bool:
        """Whether kernels can multiply it by 8-bit floats."""
        _, n, k = self.values.shape
        return self.values.dtype == torch.float8_e4m3fn and self.group == GROUP and n % GROUP == 0 and k % GROUP == 0

    @property
    def experts(self) -> int:
        return self.values.shape[0]

    @property
    def inputs(self) -> int:
        """k"""
        return self.values.shape[2]


def expert_matrix(weight: ExpertWeights) -> ExpertMatrix | Mxfp4Experts:
    """The weights in a form for kernels. Groups that are too large for kernels are cut. Weights with groups that are
    not a multiple of 16 inputs become bfloat16, and so do 8-bit floats on GPUs that cannot read them."""
    if isinstance(weight, tuple):
        return packed_experts(weight)
    if isinstance(weight, Tensor):
        return ExpertMatrix(weight.contiguous())
    inputs = weight.values.shape[2]
    group = min(LARGEST_GROUP, weight.group & -weight.group or LARGEST_GROUP)
    unread = weight.values.dtype == torch.float8_e4m3fn and not converts_fp8(weight.values.device)
    if unread or group < LEAST_GROUP:
        return ExpertMatrix(expanded(weight, torch.bfloat16))
    source = torch.arange(0, inputs, group, device=weight.scales.device) // (weight.group or inputs)
    scales, shared = weight.scales[:, :, source].transpose(1, 2).contiguous(), shared_outputs(weight.scales)
    return ExpertMatrix(weight.values.contiguous(), scales, group, shared)
