"""The feed-forward half of a layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightllm_mp.kernels.table import OpTable, Prepared


@dataclass(slots=True)
class GatedMLP:
    """down(silu(gate(x)) * up(x)), gate and up in one projection."""

    ops: OpTable
    gate_up: Prepared
    down: Prepared

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]."""
        return self.ops.linear(self.ops.gated(self.ops.linear(x, self.gate_up), "silu"), self.down)
