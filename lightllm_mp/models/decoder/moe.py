"""The mixture of experts of a layer, in place of its MLP."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightllm_mp.kernels.table import ExpertBiases, OpTable, Prepared, Routing
from lightllm_mp.models.checkpoint.assembly import EXPERTS, ModelWeights
from lightllm_mp.models.decoder.mlp import GatedMLP, PlainMLP, read_mlp
from lightllm_mp.models.spec import Activation, ModelSpec


@dataclass(slots=True)
class Mixture:
    """The weighted sum of the experts that a token is routed to, plus the MLP that all tokens share."""

    ops: OpTable
    activation: Activation
    routing: Routing
    router: Prepared
    experts: Prepared
    shared: GatedMLP | PlainMLP | None
    shared_gate: Prepared | None

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]."""
        weights, numbers = self.ops.route(self.ops.linear_float(x, self.router), self.routing)
        out = self.ops.experts(x, self.experts, weights, numbers, self.activation)
        if self.shared is None:
            return out
        beside = self.shared.forward(x)
        if self.shared_gate is not None:
            beside = beside * self.ops.linear_float(x, self.shared_gate).sigmoid().to(x.dtype)
        return out.add_(beside)


def read_mixture(weights: ModelWeights, at: str, spec: ModelSpec, ops: OpTable) -> Mixture:
    """The mixture of a layer; `at` is the prefix of its parameters."""
    moe = spec.moe
    assert moe is not None
    gate_up, down = (weights.experts(at + name, moe.experts) for name in EXPERTS)
    biases = ExpertBiases(*(weights.expert_bias(at + name, moe.experts) for name in EXPERTS))
    return Mixture(
        ops,
        spec.activation,
        Routing(moe.top_k, moe.renormalise, moe.scale, moe.groups, moe.top_groups),
        weights.linear(at + "router"),
        ops.prepare_experts(gate_up, down, biases),
        read_mlp(weights, at + "shared.", spec, ops) if moe.shared_intermediate else None,
        weights.linear(at + "shared_gate") if moe.shared_gate else None,
    )
