"""The weights of all experts as kernels read them: plain, in 8 bits with scales by groups of inputs, or in MXFP4."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightllm_mp.kernels.reference.quantised import expanded
from lightllm_mp.kernels.table import ExpertWeights
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

    @property
    def experts(self) -> int:
        return self.values.shape[0]

    @property
    def inputs(self) -> int:
        """k"""
        return self.values.shape[2]


def expert_matrix(weight: ExpertWeights) -> ExpertMatrix | Mxfp4Experts:
    """Larger groups are cut into groups that kernels take. Groups that are no multiple of 16 inputs have no kernel:
    their weights become bfloat16."""
    if isinstance(weight, tuple):
        return packed_experts(weight)
    if isinstance(weight, Tensor):
        return ExpertMatrix(weight.contiguous())
    inputs = weight.values.shape[2]
    group = min(LARGEST_GROUP, weight.group & -weight.group or LARGEST_GROUP)
    if group < LEAST_GROUP:
        return ExpertMatrix(expanded(weight, torch.bfloat16))
    source = torch.arange(0, inputs, group, device=weight.scales.device) // (weight.group or inputs)
    return ExpertMatrix(weight.values.contiguous(), weight.scales[:, :, source].transpose(1, 2).contiguous(), group)
