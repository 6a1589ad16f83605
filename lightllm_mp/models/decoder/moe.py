"""The mixture of experts of a layer, in place of its MLP."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightllm_mp.kernels.table import ExpertBiases, Norm, OpTable, Prepared, Routing
from lightllm_mp.models.checkpoint.assembly import EXPERTS, ModelWeights
from lightllm_mp.models.decoder.mlp import GatedMLP, PlainMLP, read_mlp
from lightllm_mp.models.decoder.norms import read_norm
from lightllm_mp.models.parallel.group import RankGroup
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
    scale: Tensor | None = None
    """[experts]: factor on the weights of each of the model's experts."""

    def forward(self, x: Tensor, routed: Tensor | None = None) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]; on a rank the part of its experts. The router sees `routed`, or x."""
        seen = x if routed is None else routed
        weights, numbers = self.ops.route(self.ops.linear_float(seen, self.router), self.routing)
        if self.scale is not None:
            weights = weights * self.scale[numbers.long()]
        if self.first:
            numbers = numbers - self.first
        out = self.ops.experts(x, self.experts, weights, numbers, self.activation)
        if self.shared is None:
            return out
        beside = self.shared.forward(x)
        if self.shared_gate is not None:
            beside = self.ops.sigmoid_gated(beside, self.ops.linear_float(x, self.shared_gate))
        return out.add_(beside)


@dataclass(slots=True)
class MixtureBesideMLP:
    """Experts beside the MLP of a layer, which see the residual stream behind a norm of their own (Gemma 4)."""

    ops: OpTable
    group: RankGroup
    mixture: Mixture
    router_norm: Norm
    input_norm: Norm
    out_norm: Norm
    mlp_norm: Norm

    def forward(self, mlp: Tensor, residual: Tensor) -> Tensor:
        """The MLP's output, summed over the ranks, and what went into its norm, each [tokens, hidden] -> the sum of
        both halves."""
        ops = self.ops
        out = self.mixture.forward(ops.norm(residual, self.input_norm), ops.norm(residual, self.router_norm))
        return ops.norm(mlp, self.mlp_norm).add_(ops.norm(self.group.sum(out), self.out_norm))


def read_mixture_beside(
    weights: ModelWeights, at: str, spec: ModelSpec, ops: OpTable, shard: Shard, group: RankGroup
) -> MixtureBesideMLP:
    """The experts of a layer with `MoeSpec.beside`."""
    mixture = read_mixture(weights, at, spec, ops, shard)
    mixture.scale = weights.tensor(at + "expert_scale").float()
    router = Norm(weights.tensor(at + "router_scale").float() * spec.hidden**-0.5, spec.norm_eps)
    norms = (read_norm(weights, at + name, spec) for name in ("experts_norm", "experts_out_norm", "dense_out_norm"))
    return MixtureBesideMLP(ops, group, mixture, router, *norms)


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
