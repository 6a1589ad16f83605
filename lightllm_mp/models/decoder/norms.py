"""Reads the norms of a model from its weights."""

from __future__ import annotations

from torch import Tensor

from lightllm_mp.kernels.table import HeadNorms, Norm
from lightllm_mp.models.checkpoint.assembly import ModelWeights
from lightllm_mp.models.spec import ModelSpec


def read_norm(weights: ModelWeights, target: str, spec: ModelSpec) -> Norm:
    """A norm over the hidden size."""
    bias = weights.tensor(target + ".bias") if spec.norm_bias else None
    return Norm(_factor(weights, target, spec), spec.norm_eps, bias, spec.norm)


def read_head_norms(weights: ModelWeights, at: str, spec: ModelSpec, *, keys: bool = True) -> HeadNorms | None:
    """The norms of query and key heads, where the model has them. Without `keys` those of queries alone."""
    if not spec.head_norm:
        return None
    query = _head_norm(weights, at + "q_norm", spec)
    return HeadNorms(query, _head_norm(weights, at + "k_norm", spec) if keys else query)


def _head_norm(weights: ModelWeights, target: str, spec: ModelSpec) -> Norm:
    factor = _factor(weights, target, spec)
    if spec.each_head_norm:
        factor = factor.view(-1, spec.head_dim)
    return Norm(factor, spec.norm_eps, None, spec.head_norm)


def _factor(weights: ModelWeights, target: str, spec: ModelSpec) -> Tensor:
    """The weight, or 1 + weight in float32: in 16 bits the sum would lose the weight's low bits."""
    weight = weights.tensor(target)
    return weight.float() + 1.0 if spec.norm_offset else weight
