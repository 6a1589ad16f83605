"""The mixture of experts of a layer, in place of its MLP."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightllm_mp.kernels.table import ExpertBiases, OpTable, Prepared, Routing
from lightllm_mp.models.checkpoint.assembly import EXPERTS, ModelWeights
from lightllm_mp.models.decoder.mlp import GatedMLP, PlainMLP, read_mlp
from lightllm_mp.models.parallel.sharding import Shard
from lightllm_mp.models.spec import Activation, ModelSpec


@dataclass(slots=True)
class Mixture:
    """The weighted sum of the experts that a token is routed to, plus the MLP that all tokens share."""

    ops: OpTable
    activation: Activation
    routing: Routing
    router: Prepared
    experts: Prepared
    first: int
    """Number of the first of `experts` among the model's: this rank has a run of them."""
    shared: GatedMLP | PlainMLP | None
    shared_gate: Prepared | None

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]; on a rank the part of its experts."""
        weights, numbers = self.ops.route(self.ops.linear_float(x, self.router), self.routing)
        if self.first:
            numbers = numbers - self.first
        out = self.ops.experts(x, self.experts, weights, numbers, self.activation)
        if self.shared is None:
            return out
        beside = self.shared.forward(x)
        if self.shared_gate is not None:
            beside = self.ops.sigmoid_gated(beside, self.ops.linear_float(x, self.shared_gate))
        return out.add_(beside)


def read_mixture(weights: ModelWeights, at: str, spec: ModelSpec, ops: OpTable, shard: Shard) -> Mixture:
    """The mixture of a layer; `at` is the prefix of its parameters."""
    moe = spec.moe
    assert moe is not None
    count = moe.experts if shard.own_experts is None else shard.own_experts
    gate_up, down = (weights.experts(at + name, count) for name in EXPERTS)
    biases = ExpertBiases(*(weights.expert_bias(at + name, count) for name in EXPERTS))
    return Mixture(
        ops,
        spec.activation,
        Routing(
            moe.top_k,
            moe.renormalise,
            moe.scale,
            groups=moe.groups,
            top_groups=moe.top_groups,
            group_best=moe.group_best,
            sigmoid=moe.sigmoid,
            correction=weights.tensor(at + "router.correction") if moe.correction else None,
        ),
        weights.linear(at + "router"),
        ops.prepare_experts(gate_up, down, biases),
        shard.first_expert,
        read_mlp(weights, at + "shared.", spec, ops) if moe.shared_intermediate else None,
        weights.linear(at + "shared_gate") if moe.shared_gate else None,
    )
