"""The end of a model of embeddings or scores: hidden states become rows of numbers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from lightllm_mp.kernels.table import OpTable
from lightllm_mp.models.checkpoint.assembly import ModelWeights
from lightllm_mp.models.spec import PoolingSpec


class PoolingHead:
    def __init__(self, weights: ModelWeights, spec: PoolingSpec, ops: OpTable) -> None:
        self._spec, self._ops, self._dtype = spec, ops, weights.dtype
        self._inner = weights.linear("score_in") if spec.head in ("relu", "tanh") else None
        self._score = weights.linear("score") if spec.head else None

    def rows(self, hidden: Tensor) -> Tensor:
        """[n, hidden] in the model's dtype, or a mean in float32 -> float32 [n, width]."""
        x = hidden.float() if self._score is None else self._scores(hidden.to(self._dtype))
        return functional.normalize(x, dim=-1) if self._spec.normalize else x

    def _scores(self, x: Tensor) -> Tensor:
        if self._inner is not None:
            x = self._ops.linear(x, self._inner)
            x = x.relu_() if self._spec.head == "relu" else x.tanh_()
        return self._ops.linear_float(x, self._score)
