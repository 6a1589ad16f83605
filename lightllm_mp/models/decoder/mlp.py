"""The MLP of a layer, with or without a gate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightllm_mp.kernels.table import OpTable, Prepared
from lightllm_mp.models.checkpoint.assembly import ModelWeights
from lightllm_mp.models.spec import Activation, ModelSpec


@dataclass(slots=True)
class GatedMLP:
    """down(activation(gate x) * up x), gate and up in one projection."""

    ops: OpTable
    activation: Activation
    gate_up: Prepared
    down: Prepared

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]."""
        return self.ops.linear(self.ops.gated(self.ops.linear(x, self.gate_up), self.activation), self.down)


@dataclass(slots=True)
class PlainMLP:
    """down(activation(up x))."""

    ops: OpTable
    activation: Activation
    up: Prepared
    down: Prepared

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]."""
        return self.ops.linear(self.ops.activate(self.ops.linear(x, self.up), self.activation), self.down)


def read_mlp(weights: ModelWeights, at: str, spec: ModelSpec, ops: OpTable) -> GatedMLP | PlainMLP:
    """The MLP of the parameters `<at>gate_up` (or `<at>up`) and `<at>down`."""
    down = weights.linear(at + "down")
    if spec.gated:
        return GatedMLP(ops, spec.activation, weights.linear(at + "gate_up"), down)
    return PlainMLP(ops, spec.activation, weights.linear(at + "up"), down)
