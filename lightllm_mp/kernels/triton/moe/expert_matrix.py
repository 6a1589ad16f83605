"""The weights of all experts as kernels read them: plain, in 8 bits with scales by groups of inputs, or in MXFP4."""

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
"""Inputs that share a scale in a kernel, powers of two: the smallest matrix instruction's, and no more than a program
holds at a time."""


class ExpertMatrix(NamedTuple):
    """[experts, n, k]"""

    values: Tensor
    """In the dtype of activations, or of 8 bits."""
    scales: Tensor | None = None
    """float32 [experts, groups, n]"""
    group: int = 0
    """Inputs that share a scale."""
    scale_outputs: int = 1
    """The size of the equal blocks of outputs that share their scales."""

    @property
    def in_fp8_blocks(self) -> bool:
        """Whether it can be multiplied by 8-bit floats."""
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
    """Larger groups are cut into groups that kernels take. Weights with groups that are no multiple of 16 inputs become
    bfloat16, and so do 8-bit floats on GPUs that do not read them."""
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
