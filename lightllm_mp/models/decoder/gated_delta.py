"""Linear attention by the gated delta rule (arXiv 2412.06464), in place of a layer's attention.

A sequence's earlier tokens are in a matrix of constant size per head, and in the last inputs of the convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import DeltaLayout, DeltaWeights, OpTable, Prepared
from lightllm_mp.models.checkpoint.assembly import ModelWeights
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.spec import ModelSpec


@dataclass(slots=True)
class GatedDelta:
    """The linear attention of one layer over the states of the pool."""

    ops: OpTable
    layer: int
    layout: DeltaLayout
    qkvz: Prepared
    ba: Prepared
    weights: DeltaWeights
    out: Prepared

    def forward(self, x: Tensor, batch: Batch, kv: KVPool, rows: Tensor | None = None) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden], or only its `rows`; moves the sequences' states on."""
        assert kv.states is not None
        projected, ba = self.ops.linear(x, self.qkvz), self.ops.linear_float(x, self.ba)
        out = self.ops.gated_delta(projected, ba, self.weights, kv.states.layers[self.layer], batch, self.layout)
        return self.ops.linear(out if rows is None else out[rows], self.out)


def read_gated_delta(weights: ModelWeights, layer: int, spec: ModelSpec, ops: OpTable) -> GatedDelta:
    delta, at = spec.delta, f"layers.{layer}.delta."
    assert delta is not None
    return GatedDelta(
        ops,
        layer,
        DeltaLayout(delta.key_heads, delta.value_heads, delta.key_dim, delta.value_dim, spec.norm_eps),
        weights.linear(at + "qkvz"),
        weights.linear(at + "ba"),
        DeltaWeights(
            weights.take(at + "conv").T.contiguous(),
            weights.tensor(at + "a_log").exp(),
            weights.tensor(at + "dt_bias"),
            weights.tensor(at + "norm"),
        ),
        weights.linear(at + "out"),
    )
